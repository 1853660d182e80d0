-- What the views say while nothing can be sent. (What they say of events on their way: t/.)

-- the contract: columns and their types
SELECT c.relname AS view, string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.oid IN ('outbox.event'::regclass, 'outbox.sink'::regclass, 'outbox.stat_sink'::regclass, 'outbox.stat_verify'::regclass,
    'outbox.dead_letter'::regclass, 'outbox.stat_consumer'::regclass)
GROUP BY c.relname ORDER BY c.relname COLLATE "C" \gx

-- everything that a user may come across says what it is
SELECT kind, name FROM (
    SELECT 'relation' AS kind, oid::regclass::text AS name, obj_description(oid, 'pg_class') AS comment
    FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'v', 'm', 'S', 'p', 'f')
    UNION ALL
    SELECT 'function', oid::regprocedure::text, obj_description(oid, 'pg_proc') FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace
    UNION ALL
    SELECT 'type', oid::regtype::text, obj_description(oid, 'pg_type') FROM pg_type
    WHERE typnamespace = 'outbox'::regnamespace AND typtype IN ('d', 'e', 'r')
    UNION ALL
    SELECT 'schema', nspname, obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = 'outbox'
    UNION ALL
    SELECT 'extension', extname, obj_description(oid, 'pg_extension') FROM pg_extension WHERE extname = 'outbox') AS object
WHERE comment IS NULL OR comment = '' ORDER BY kind, name;
-- and is a member of the extension
SELECT classid::regclass AS kind, name FROM (
    SELECT 'pg_class'::regclass AS classid, oid AS objid, oid::regclass::text AS name FROM pg_class
    WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'v', 'm', 'S', 'p', 'f')
    UNION ALL
    SELECT 'pg_proc'::regclass, oid, oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace) AS object
WHERE NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'outbox'
    WHERE d.classid = object.classid AND d.objid = object.objid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e');
-- what a dump must carry is registered: every table and sequence
SELECT oid::regclass AS missing FROM pg_class
WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'S')
  AND oid <> ALL ((SELECT extconfig FROM pg_extension WHERE extname = 'outbox')::oid[]);

-- an event that waits
SELECT outbox.emit('views_waiting.happened', '{"a": 1}', 'id', 'type', headers => '{"h": "1"}', event_id => '11111111-1111-7111-9111-111111111111');
SELECT event_id, event_type, topic, aggregate_type, aggregate_id, version, headers, payload, status, stream, position, attempts, last_error,
    published_at, seq > 0 AS seq, xid IS NOT NULL AS xid
FROM outbox.event WHERE topic = 'views_waiting' \gx
-- its transaction sees it before the commit, others do not
BEGIN;
SELECT count(outbox.emit('views_waiting.more', '{}'));
SELECT event_type, status, position FROM outbox.event WHERE topic = 'views_waiting' ORDER BY seq;
ROLLBACK;
SELECT event_type, status, position FROM outbox.event WHERE topic = 'views_waiting' ORDER BY seq;

-- the sink that is always there
SELECT id, name, url, paused, restored FROM outbox.sink;
SELECT outbox.pause();
SELECT id, name, url, paused, restored, uuid IS NOT NULL AS has_uuid, created_at <= now() AS created FROM outbox.sink;
SELECT outbox.pause('default');

SELECT sink, state, lag_events > 0 AS lag_events, lag_seconds >= 0 AS lag_seconds, COALESCE(published, 0) AS published,
    COALESCE(duplicates_rejected, 0) AS duplicates_rejected, COALESCE(healed, 0) AS healed, held_streams, dead_letters, position,
    confirmed_at, retention_held_back_by
FROM outbox.stat_sink \gx
-- lag counts what is committed
SELECT lag_events FROM outbox.stat_sink \gset
BEGIN;
SELECT count(outbox.emit('views_lag.happened', '{}')) FROM generate_series(1, 10);
COMMIT;
BEGIN;
SELECT count(outbox.emit('views_lag.happened', '{}')) FROM generate_series(1, 10);
ROLLBACK;
SELECT lag_events - :lag_events AS more FROM outbox.stat_sink;
-- and tells the age of the oldest, by its own time
SELECT count(outbox.emit('views_lag.long_ago', '{}', occurred_at => now() - interval '1 year'));
SELECT lag_seconds >= 365 * 86400 AS a_year FROM outbox.stat_sink;

SELECT outbox.resume('default', take_over => true);
SELECT paused, restored FROM outbox.sink;
SELECT outbox.resume();
SELECT name, paused, take_over FROM outbox.sink_definition;
-- what is paused in a transaction that fails was not paused
BEGIN;
SELECT outbox.pause();
ROLLBACK;
SELECT paused FROM outbox.sink;

SELECT count(*) FROM outbox.dead_letter;
SELECT count(*) FROM outbox.event WHERE status <> 'pending';
-- no view is one that can be written through
SELECT oid::regclass FROM pg_class
WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'v' AND pg_relation_is_updatable(oid, false) <> 0 ORDER BY 1;
