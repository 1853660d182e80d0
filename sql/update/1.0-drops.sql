
-- functions of version 1.0 that have more parameters now
DROP FUNCTION outbox.locate(int, int, xid8, bigint);
DROP FUNCTION outbox.flush(interval);
DROP FUNCTION outbox.emit(text, text, text, text, int, jsonb, text, timestamptz, uuid);
DROP FUNCTION outbox.emit(text, json, text, text, int, jsonb, text, timestamptz, uuid);
DROP FUNCTION outbox.emit(text, jsonb, text, text, int, jsonb, text, timestamptz, uuid);
