-- The ring of partitions: generation g lives in partition g % 8, and the views see them all.

CREATE DATABASE regress_outbox_ring;
\c regress_outbox_ring
CREATE EXTENSION outbox;
SELECT count(*) FROM outbox.ring;
SELECT count(outbox.emit('ring.happened', '{"generation": 0}'));
-- Only the worker moves the ring on, and tells everybody. A session that connects afterwards sees it without being told.
INSERT INTO outbox.ring VALUES (1, now());
\c -
SELECT count(outbox.emit('ring.happened', '{"generation": 1}'));
INSERT INTO outbox.ring VALUES (2, now()), (3, now());
\c -
SELECT count(outbox.emit('ring.happened', '{"generation": 3}'));
-- the highest generation counts, whatever the order and age of the rows
INSERT INTO outbox.ring VALUES (15, '2001-01-01'), (7, now());
\c -
SELECT count(outbox.emit('ring.happened', '{"generation": 15}'));
DELETE FROM outbox.ring WHERE generation < 15;
INSERT INTO outbox.ring VALUES (16, now());
\c -
SELECT count(outbox.emit('ring.happened', '{"generation": 16}'));
SELECT 0 AS partition, payload FROM outbox.event_0 UNION ALL SELECT 1, payload FROM outbox.event_1
UNION ALL SELECT 2, payload FROM outbox.event_2 UNION ALL SELECT 3, payload FROM outbox.event_3
UNION ALL SELECT 4, payload FROM outbox.event_4 UNION ALL SELECT 5, payload FROM outbox.event_5
UNION ALL SELECT 6, payload FROM outbox.event_6 UNION ALL SELECT 7, payload FROM outbox.event_7 ORDER BY partition, payload;
SELECT payload, status FROM outbox.event ORDER BY seq;
SELECT lag_events FROM outbox.stat_sink;
-- emit holds its table until the transaction ends
BEGIN;
SELECT count(outbox.emit('ring.happened', '{"generation": "16, uncommitted"}'));
SELECT mode FROM pg_locks WHERE relation = 'outbox.event_0'::regclass AND pid = pg_backend_pid();
COMMIT;
-- a lock that was taken in a savepoint is gone with it, so that the next call takes its own
BEGIN;
SAVEPOINT a;
SELECT count(outbox.emit('ring.happened', '{}'));
ROLLBACK TO a;
SELECT count(*) FROM pg_locks WHERE relation = 'outbox.event_0'::regclass AND pid = pg_backend_pid();
SELECT count(outbox.emit('ring.happened', '{}'));
SELECT mode FROM pg_locks WHERE relation = 'outbox.event_0'::regclass AND pid = pg_backend_pid();
ROLLBACK;
\c regression
DROP DATABASE regress_outbox_ring;
