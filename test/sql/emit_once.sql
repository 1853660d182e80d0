-- Emit once: a dedupe key is for one event, and who uses it again is told which.

\set SHOW_CONTEXT never
CREATE VIEW once AS SELECT event_type, count(*) FROM outbox.event WHERE event_type LIKE 'once.%' GROUP BY 1 ORDER BY 1;

SELECT outbox.emit('once.first', '1', dedupe_key => 'once 1') AS first \gset
SELECT outbox.emit('once.second', '2', dedupe_key => 'once 1') = :'first' AS same;
SELECT outbox.emit('once.third', '3'::json, dedupe_key => 'once 1') = :'first' AS same;
SELECT outbox.emit('elsewhere.fourth', '4'::jsonb, topic => 'elsewhere', dedupe_key => 'once 1', event_id => gen_random_uuid()) = :'first' AS same_in_another_topic;
SELECT outbox.emit('once.other', '5', dedupe_key => 'once 2', event_id => '01a1fd51-24fc-713f-8abb-bbffb042aad0');
SELECT outbox.emit('once.other', '6', dedupe_key => 'once 2');
-- keys are compared byte by byte
SELECT count(DISTINCT outbox.emit('once.bytes', '0', dedupe_key => key)) FROM (VALUES ('once a'), ('once A'), ('once a '), ('once ä')) v(key);
-- without a key, each
SELECT count(DISTINCT outbox.emit('once.without', '0', dedupe_key => NULL)) FROM generate_series(1, 3);
-- in one statement
SELECT count(DISTINCT outbox.emit('once.statement', '0', dedupe_key => 'statement ' || i % 2)) FROM generate_series(10, 19) i;
SELECT * FROM once;

-- what is rolled back was not used
BEGIN;
SAVEPOINT s;
SELECT outbox.emit('once.rolled_back', '0', dedupe_key => 'once 3') IS NOT NULL AS emitted;
ROLLBACK TO s;
SELECT outbox.emit('once.rolled_back', '0', dedupe_key => 'once 3') AS second \gset
RELEASE s;
SELECT outbox.emit('once.rolled_back', '0', dedupe_key => 'once 3') = :'second' AS same;
ROLLBACK;
SELECT outbox.emit('once.after_rollback', '0', dedupe_key => 'once 3') <> :'second' AS another;
BEGIN;
SELECT outbox.emit('once.prepared', '0', dedupe_key => 'once 4') AS prepared \gset
PREPARE TRANSACTION 'once';
COMMIT PREPARED 'once';
SELECT outbox.emit('once.prepared', '0', dedupe_key => 'once 4') = :'prepared' AS same;

-- delayed: the key counts from emit() on, and goes on to count when the event is cancelled
SELECT outbox.emit('once.delayed', '0', dedupe_key => 'once 5', deliver_at => now() + '1 hour') AS delayed \gset
SELECT outbox.emit('once.delayed', '0', dedupe_key => 'once 5', deliver_at => now() + '2 hours') = :'delayed' AS same;
SELECT count(*) FROM outbox.delayed_event WHERE event_type = 'once.delayed';
SELECT outbox.cancel(:'delayed');
SELECT outbox.emit('once.delayed', '0', dedupe_key => 'once 5') = :'delayed' AS same;
SELECT * FROM once WHERE event_type NOT IN (SELECT event_type FROM once WHERE event_type IN ('once.bytes', 'once.without', 'once.statement'));

-- what is refused, also when the key has been used
SELECT outbox.emit('once.never', '0', dedupe_key => '');
SELECT outbox.emit('once.never', '0', dedupe_key => repeat('k', 257));
SELECT outbox.emit('once.never', '0', dedupe_key => repeat('k', 256)) IS NOT NULL AS emitted;
SELECT outbox.emit('once.never', 'no JSON', dedupe_key => 'once 1');
SELECT outbox.emit('once.never', '0', dedupe_key => 'once 1', deliver_at => 'infinity');

-- a snapshot that does not see the event must not go by it
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT outbox.emit('once.first', '1', dedupe_key => 'once 1') = :'first' AS same;
SELECT outbox.emit('once.repeatable', '1', dedupe_key => 'once 6') = outbox.emit('once.repeatable', '1', dedupe_key => 'once 6') AS same;
COMMIT;

-- as version 1.0 calls it, between the exchange of the library and ALTER EXTENSION UPDATE
CREATE FUNCTION pg_temp.emit_1_0(event_type text, payload text, aggregate_id text, aggregate_type text, version int, headers jsonb, topic text,
    occurred_at timestamptz, event_id uuid) RETURNS uuid LANGUAGE c VOLATILE AS '$libdir/outbox', 'outbox_emit_text';
SELECT pg_temp.emit_1_0('once.old', '{}', NULL, NULL, 1, NULL, NULL, NULL, '01a1fd51-24fc-713f-8abb-bbffb042aad1');
SELECT event_type FROM outbox.event WHERE event_id = '01a1fd51-24fc-713f-8abb-bbffb042aad1';
DROP VIEW once;
