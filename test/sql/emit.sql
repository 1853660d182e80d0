-- What emit takes, returns and keeps. Redis is out of reach here, so that every event stays as it was emitted.

-- the least: an event type and a payload
SELECT outbox.emit('emit_least.happened', '{"a": 1}') IS NOT NULL AS returned;
SELECT event_type, topic, aggregate_type, aggregate_id, version, headers, payload
FROM outbox.event WHERE topic = 'emit_least';

-- all of it, by position and by name
SELECT outbox.emit('emit_all.some-aggregate.by_position', '{"a": 1}', 'id 1', 'type 1', 2, '{"h": "1"}', 'emit_all.Topic-1',
    '2026-01-02 03:04:05.678901+02', '11111111-2222-3333-4444-555555555555');
SELECT outbox.emit(event_id => '99999999-8888-7777-6666-555555555555', occurred_at => '2026-01-02 03:04:05.678901+02',
    topic => 'emit_all.Topic-1', headers => '{"h": "1"}', version => 2, aggregate_type => 'type 1', aggregate_id => 'id 1',
    payload => '{"a": 1}', event_type => 'emit_all.some-aggregate.by_name');
SELECT event_type, topic, aggregate_type, aggregate_id, version, headers, payload, stream
FROM outbox.event WHERE topic = 'emit_all.Topic-1' ORDER BY seq;
SELECT event_id, occurred_at AT TIME ZONE 'UTC' AS occurred_at
FROM outbox.event WHERE topic = 'emit_all.Topic-1' ORDER BY seq;

-- which of the three is meant: what has no type is text, and so is what turns into text by itself
CREATE FUNCTION pg_temp.resolves(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    line text;
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (VERBOSE, COSTS OFF) SELECT ' || call LOOP
        IF line LIKE '%Output:%' THEN
            RETURN replace(substring(line FROM 'Output: (.*)'), ' COLLATE "C"', '');
        END IF;
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END
$$;
CREATE DOMAIN emit_text AS text;
CREATE DOMAIN emit_jsonb AS jsonb;
SELECT pg_temp.resolves($$outbox.emit('a.b', '{}')$$) AS call;
SELECT payload, substring(pg_temp.resolves(format('outbox.emit(%L, %s)', 'a.b', payload))
    FROM '^outbox\.emit\(''a\.b''::text, (.*), NULL::text, NULL::text, 1, NULL::jsonb, NULL::text, ') AS resolved
FROM unnest(ARRAY[
    '''{}''', '''{}''::text', '''{}''::varchar', '''{}''::varchar(9)', '''{}''::char(9)', '''{}''::name', '''{}''::emit_text',
    '''{}'' || ''''', '''{}''::json', '''{}''::jsonb', '''{}''::emit_jsonb', 'NULL', 'NULL::json', 'NULL::jsonb',
    'to_json(1)', 'to_jsonb(1)']) AS payload;
-- and what is neither text nor JSON has to be made so
SELECT payload, pg_temp.resolves(format('outbox.emit(%L, %s)', 'a.b', payload)) AS call
FROM unnest(ARRAY['1', '1.5', 'true', 'ROW(1)', 'ARRAY[1]', '''\x7b7d''::bytea', 'now()']) AS payload;
SELECT pg_temp.resolves($$outbox.emit('a.b'::varchar, '{}', 'i'::name, 't'::char(3), 7::smallint)$$) AS call;
SELECT pg_temp.resolves($$outbox.emit('a.b', '{}', version => 7::bigint)$$) AS bigint,
    pg_temp.resolves($$outbox.emit('a.b')$$) AS no_payload,
    pg_temp.resolves($$outbox.emit('a.b', '{}', nonsense => 1)$$) AS unknown_name;
SELECT count(*) AS events FROM outbox.event WHERE event_type = 'a.b';

-- text and json are kept to the letter, jsonb as jsonb prints it
SELECT count(*) FROM (VALUES
    (outbox.emit('emit_kept.text', E' {"b":1.50,\t"a":1e400, "b":"\\u0000"} ')),
    (outbox.emit('emit_kept.json', E' {"b":1.50,\t"a":1e400, "b":"\\u0000"} '::json)),
    (outbox.emit('emit_kept.jsonb', E' {"b":1.50,\t"a":1e4, "b":"\\u0001"} '::jsonb)),
    (outbox.emit('emit_kept.char', '{"a":1}'::char(20))),
    (outbox.emit('emit_kept.scalar', 'null')),
    (outbox.emit('emit_kept.scalar', '"grün 💸"')),
    (outbox.emit('emit_kept.scalar', 'null'::jsonb))) AS emitted;
SELECT event_type, '>' || replace(payload::text, E'\t', '\t') || '<' AS payload FROM outbox.event WHERE topic = 'emit_kept' ORDER BY seq;

-- a large one comes back whole
SELECT count(outbox.emit('emit_large.happened', to_json(large), aggregate_id => md5(large)))
FROM (SELECT string_agg(md5(n::text), '') AS large FROM generate_series(1, 10000) n) AS made;
SELECT length(payload #>> '{}') AS length, md5(payload #>> '{}') = aggregate_id AS same FROM outbox.event WHERE topic = 'emit_large';

-- untyped parameters
PREPARE emit_untyped AS SELECT outbox.emit($1, $2, aggregate_id => $3, version => $4, headers => $5) IS NOT NULL AS emitted;
SELECT parameter_types FROM pg_prepared_statements WHERE name = 'emit_untyped';
EXECUTE emit_untyped('emit_prepared.untyped', '{"n": 1}', 'x', 3, '{"h": 1}');
EXECUTE emit_untyped('emit_prepared.untyped', '{"n": 2}', NULL, 4, NULL);
PREPARE emit_typed(text, jsonb) AS SELECT outbox.emit($1, $2) IS NOT NULL AS emitted;
EXECUTE emit_typed('emit_prepared.typed', '{"n":3}');
SELECT event_type, payload, aggregate_id, version, headers FROM outbox.event WHERE topic = 'emit_prepared' ORDER BY seq;

-- the id: UUID version 7, variant 10, beginning with the clock; or the one that is given
SELECT substr(id::text, 15, 1) AS version, substr(id::text, 20, 1) IN ('8', '9', 'a', 'b') AS variant,
    abs(('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0 - extract(epoch FROM clock_timestamp())) < 60
        AS clock
FROM outbox.emit('emit_id.happened', '{}') AS id;
SELECT count(DISTINCT outbox.emit('emit_id.happened', '{}')) FROM generate_series(1, 200);
SELECT outbox.emit('emit_id.given', '{}', event_id => '00000000-0000-0000-0000-000000000000');
SELECT outbox.emit('emit_id.returned', '{}') AS id \gset
SELECT event_id = :'id' AS same FROM outbox.event WHERE event_type = 'emit_id.returned' ORDER BY seq DESC LIMIT 1;

-- the time: the clock's, or the one that is given, from the year 1 to the year 9999
BEGIN;
SELECT pg_sleep(0.01);
SELECT outbox.emit('emit_time.now', '{}') IS NOT NULL AS emitted;
SELECT occurred_at > now() AND occurred_at <= clock_timestamp() AS of_the_clock FROM outbox.event WHERE event_type = 'emit_time.now';
COMMIT;
SELECT count(*) FROM (VALUES
    (outbox.emit('emit_time.given', '{}', occurred_at => '0001-01-01 00:00:00+00')),
    (outbox.emit('emit_time.given', '{}', occurred_at => '1969-07-20 20:17:40+00')),
    (outbox.emit('emit_time.given', '{}', occurred_at => '9999-12-31 23:59:59.999999+00'))) AS emitted;
SELECT occurred_at AT TIME ZONE 'UTC' AS occurred_at FROM outbox.event WHERE event_type = 'emit_time.given' ORDER BY seq;

-- the topic: the first segment, or the one that is given
SELECT count(*) FROM (VALUES
    (outbox.emit('emit_topic.user.created', '{}')),
    (outbox.emit('emit_topic.user.created', '{}', topic => 'emit_topic')),
    (outbox.emit('emit_topic.user.created', '{}', topic => 'emit_topic.elsewhere'))) AS emitted;
SELECT topic, stream FROM outbox.event WHERE event_type LIKE 'emit@_topic.%' ESCAPE '@' ORDER BY seq;

-- the longest
SELECT count(*) FROM (VALUES
    (outbox.emit('emit_longest.' || repeat('x', 187), '{}')),
    (outbox.emit(repeat('x', 100) || '.emit_longest', '{}')),
    (outbox.emit('emit_longest.topic', '{}', topic => repeat('x', 100))),
    (outbox.emit('emit_longest.aggregate', '{}', repeat('x', 1000), repeat('y', 1000))),
    (outbox.emit('emit_longest.version', '{}', version => 2147483647))) AS emitted;
SELECT octet_length(event_type) AS event_type, octet_length(topic) AS topic, length(aggregate_id) AS id, length(aggregate_type) AS type,
    version
FROM outbox.event WHERE event_type LIKE '%emit@_longest%' ESCAPE '@' ORDER BY seq;

-- in bulk, in the order of the rows
SELECT count(outbox.emit('emit_bulk.happened', jsonb_build_object('n', n), aggregate_id => n::text))
FROM (SELECT n FROM generate_series(1, 1000) n ORDER BY n DESC) AS rows;
SELECT array_agg(aggregate_id::int ORDER BY seq) = array_agg(aggregate_id::int ORDER BY aggregate_id::int DESC) AS in_order, count(*),
    count(DISTINCT event_id) AS ids
FROM outbox.event WHERE topic = 'emit_bulk';

-- together with what it tells of
CREATE TABLE emit_wallet (id int PRIMARY KEY, owner text);
WITH created AS (INSERT INTO emit_wallet SELECT n, 'anna' FROM generate_series(1, 3) n RETURNING *)
SELECT count(outbox.emit('emit_wallet.created', to_jsonb(created), aggregate_id => id::text)) FROM created;
CREATE FUNCTION emit_wallet_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM outbox.emit('emit_wallet.changed', row_to_json(NEW), NEW.id::text, TG_TABLE_NAME);
    RETURN NULL;
END
$$;
CREATE TRIGGER changed AFTER UPDATE ON emit_wallet FOR EACH ROW EXECUTE FUNCTION emit_wallet_changed();
UPDATE emit_wallet SET owner = 'bert' WHERE id < 3;
SELECT event_type, aggregate_type, aggregate_id, payload FROM outbox.event WHERE topic = 'emit_wallet' ORDER BY seq;

-- from functions
DO $$
DECLARE
    untyped text := '{"n": 1}';
    document jsonb := '{"n": 2}';
    id uuid;
BEGIN
    PERFORM outbox.emit('emit_plpgsql.text', untyped);
    id := outbox.emit('emit_plpgsql.jsonb', document || '{"m": 3}');
    SELECT outbox.emit('emit_plpgsql.literal', '{"n": 4}', aggregate_id => id::text) INTO id;
    EXECUTE 'SELECT outbox.emit($1, $2)' USING 'emit_plpgsql.using', '{"n": 5}'::text;
END
$$;
CREATE FUNCTION emit_sql(int) RETURNS uuid LANGUAGE sql AS $$ SELECT outbox.emit('emit_plpgsql.sql', jsonb_build_object('n', $1)) $$;
SELECT emit_sql(6) IS NOT NULL AS emitted;
SELECT event_type, payload FROM outbox.event WHERE topic = 'emit_plpgsql' ORDER BY seq;

-- PostgreSQL does not execute a SELECT in WITH that nothing refers to, nor what EXPLAIN only plans
WITH e AS (SELECT outbox.emit('emit_with.unreferenced', '{}')) SELECT 1 AS one;
WITH e AS (SELECT outbox.emit('emit_with.referenced', '{}') AS id) SELECT count(id) FROM e;
EXPLAIN (COSTS OFF) SELECT outbox.emit('emit_with.explained', '{}');
SELECT event_type FROM outbox.event WHERE topic = 'emit_with' ORDER BY seq;
-- and it keeps an unused column of a subquery that calls a volatile function
SELECT count(*) FROM (SELECT outbox.emit('emit_subquery.happened', '{}') FROM generate_series(1, 3)) AS e;
SELECT count(*) FROM outbox.event WHERE topic = 'emit_subquery';

-- with the transaction: all of it or nothing
BEGIN;
SELECT outbox.emit('emit_transaction.rolled_back', '{}') IS NOT NULL AS emitted;
ROLLBACK;
BEGIN;
SELECT outbox.emit('emit_transaction.kept_1', '{}') IS NOT NULL AS emitted;
SAVEPOINT a;
SELECT outbox.emit('emit_transaction.rolled_back_to_a', '{}') IS NOT NULL AS emitted;
SAVEPOINT b;
SELECT outbox.emit('emit_transaction.rolled_back_to_a_too', '{}') IS NOT NULL AS emitted;
RELEASE b;
ROLLBACK TO a;
SELECT outbox.emit('emit_transaction.kept_2', '{}') IS NOT NULL AS emitted;
SAVEPOINT c;
SELECT outbox.emit('emit_transaction.kept_3', '{}') IS NOT NULL AS emitted;
-- every event carries the transaction's own id, also in a savepoint
SELECT count(*), bool_and(xid = pg_current_xact_id()) AS same FROM outbox.event WHERE topic = 'emit_transaction';
COMMIT;
DO $$
BEGIN
    PERFORM outbox.emit('emit_transaction.kept_4', '{}');
    BEGIN
        PERFORM outbox.emit('emit_transaction.caught', '{}');
        RAISE EXCEPTION 'caught';
    EXCEPTION WHEN raise_exception THEN
        NULL;
    END;
END
$$;
CREATE PROCEDURE emit_steps() LANGUAGE plpgsql AS $$
BEGIN
    PERFORM outbox.emit('emit_transaction.kept_5', '{}');
    COMMIT;
    PERFORM outbox.emit('emit_transaction.rolled_back', '{}');
    ROLLBACK;
    PERFORM outbox.emit('emit_transaction.kept_6', '{}');
END
$$;
CALL emit_steps();
SELECT event_type FROM outbox.event WHERE topic = 'emit_transaction' ORDER BY seq;

-- with a prepared one too
BEGIN;
SELECT outbox.emit('emit_prepared_transaction.committed', '{}') IS NOT NULL AS emitted;
PREPARE TRANSACTION 'emit_1';
BEGIN;
SELECT outbox.emit('emit_prepared_transaction.rolled_back', '{}') IS NOT NULL AS emitted;
PREPARE TRANSACTION 'emit_2';
SELECT count(*) FROM outbox.event WHERE topic = 'emit_prepared_transaction';
COMMIT PREPARED 'emit_1';
ROLLBACK PREPARED 'emit_2';
SELECT event_type FROM outbox.event WHERE topic = 'emit_prepared_transaction' ORDER BY seq;

-- at every isolation level
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT outbox.emit('emit_isolation.repeatable_read', '{}') IS NOT NULL AS emitted;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT outbox.emit('emit_isolation.serializable', '{}') IS NOT NULL AS emitted;
COMMIT;
SELECT event_type FROM outbox.event WHERE topic = 'emit_isolation' ORDER BY seq;

DROP PROCEDURE emit_steps();
DROP FUNCTION emit_sql(int);
DROP TABLE emit_wallet;
DROP FUNCTION emit_wallet_changed();
DROP DOMAIN emit_text, emit_jsonb;
