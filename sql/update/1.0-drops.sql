
-- functions of version 1.0 that have more parameters now
DROP FUNCTION outbox.locate(int, int, xid8, bigint);
DROP FUNCTION outbox.flush(interval);
