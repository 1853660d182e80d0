-- Every error of emit and its neighbours: SQLSTATE, message, detail and hint. And that none leaves anything behind.
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never

CREATE FUNCTION pg_temp.attempt(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    state text;
    message text;
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'no error';
EXCEPTION WHEN OTHERS OR query_canceled THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN state || ' ' || message || COALESCE(E'\n  DETAIL ' || NULLIF(detail, ''), '') || COALESCE(E'\n  HINT ' || NULLIF(hint, ''), '');
END
$$;
-- where the text is PostgreSQL's own
CREATE FUNCTION pg_temp.state(statement text) RETURNS text LANGUAGE sql AS $$ SELECT left(pg_temp.attempt(statement), 5) $$;
CREATE FUNCTION pg_temp.attempt_emit(arguments text) RETURNS text LANGUAGE sql
    AS $$ SELECT pg_temp.attempt('SELECT outbox.emit(' || arguments || ')') $$;

-- nulls
SELECT pg_temp.attempt_emit($$NULL, '{}'$$);
SELECT pg_temp.attempt_emit($$'errors.null', NULL$$);
SELECT pg_temp.attempt_emit($$'errors.null', NULL::text$$);
SELECT pg_temp.attempt_emit($$'errors.null', NULL::json$$);
SELECT pg_temp.attempt_emit($$'errors.null', NULL::jsonb$$);
SELECT pg_temp.attempt_emit($$'errors.null', '{}', version => NULL$$);

-- event types
SELECT pg_temp.attempt_emit($$'errors', '{}'$$);
SELECT split_part(pg_temp.attempt_emit(format('%L, %L', type, '{}')), E'\n', 1)
FROM unnest(ARRAY[
    '', '.', 'errors.', '.errors', 'errors..x', ' errors.x', 'errors.x ', 'errors x.y',
    E'errors.x\r\nFLUSHALL\r\n', E'errors.x\nFATAL:  the end', E'errors.\t', E'\x1b[31merrors.x\x1b[0m', E'errors.\x7f',
    '{errors}.x', 'errors}.x', 'errors:x.y', 'errors.*', 'errors.?', 'errors.[x]', '../errors.x', 'errors/x.y', '%s.%n%b', 'errors.%s',
    'érrors.x', U&'errors.\200Bx', U&'errors.\202Ex', '💸.x', E'errors.x\\', '"errors".x', '''errors''.x', 'errors.x;', 'errors.x,y']) AS type;
-- 201 bytes, and a lot more: a message quotes no more than it must
SELECT pg_temp.attempt_emit(format('%L, %L', 'errors.' || repeat('x', 194), '{}'));
SELECT length(pg_temp.attempt_emit(format('%L, %L', repeat('x', 1000000), '{}'))) < 400;
SELECT length(pg_temp.attempt_emit(format('%L, %L', repeat(E'\n', 1000000), '{}'))) < 600;

-- what cannot be in a text at all
SELECT pg_temp.state($$SELECT outbox.emit('errors.x' || chr(0), '{}')$$);
SELECT pg_temp.state($$SELECT outbox.emit(E'errors.x\000', '{}')$$);
SELECT pg_temp.state($$SELECT outbox.emit(E'errors.\xff', '{}')$$);
SELECT pg_temp.state($$SELECT outbox.emit(convert_from('\xff', 'UTF8'), '{}')$$);
SELECT pg_temp.state($$SELECT outbox.emit('errors.x', E'"\xff"')$$);
SELECT pg_temp.state($$SELECT outbox.emit('errors.x', E'"\xed\xa0\x80"')$$);

-- topics
SELECT pg_temp.attempt_emit($$'errors.topic', '{}', topic => ''$$);
SELECT pg_temp.attempt_emit(format('%L, %L, topic => %L', 'errors.topic', '{}', repeat('x', 101)));
SELECT split_part(pg_temp.attempt_emit(format('%L, %L, topic => %L', 'errors.topic', '{}', topic)), E'\n', 1)
FROM unnest(ARRAY['a}', '{a}', 'a:dlq:g', 'a b', E'a\r\nDEL b', 'a.', '.a', 'a..b', '*', 'é']) AS topic;
-- the default one may be too long too
SELECT pg_temp.attempt_emit(format('%L, %L', repeat('x', 101) || '.y', '{}'));

-- payloads that are no JSON
SELECT pg_temp.state(format('SELECT outbox.emit(%L, %L)', 'errors.payload', payload))
FROM unnest(ARRAY['', ' ', '{', '{}{}', '{"a": 1,}', '{a: 1}', '''{}''', 'x', 'nul', '01', '1.', '"x', E'"\n"', '"\x"', '"\u12"', '[1 2]',
    '<a/>']) AS payload;
SELECT split_part(pg_temp.attempt_emit($$'errors.payload', 'x'$$), E'\n', 1);
SELECT pg_temp.state($$SELECT outbox.emit('errors.payload', '"\u0000"'::jsonb)$$);
-- numbers beyond jsonb's
SELECT pg_temp.state($$SELECT outbox.emit('errors.payload', '1e1000000'::jsonb)$$);

-- nested deeply: accepted or refused, and nothing worse
DO $$
DECLARE
    depth int;
    outcome text;
BEGIN
    FOREACH depth IN ARRAY ARRAY[100, 1000, 100000, 500000] LOOP
        BEGIN
            PERFORM outbox.emit('errors.nested', repeat('[', depth) || repeat(']', depth));
            outcome := 'accepted';
            RAISE EXCEPTION 'undo' USING ERRCODE = 'OB000';
        EXCEPTION
            WHEN SQLSTATE 'OB000' THEN NULL;
            WHEN statement_too_complex THEN outcome := SQLSTATE;
        END;
        RAISE NOTICE '% levels: %', depth, outcome;
    END LOOP;
    BEGIN
        PERFORM outbox.emit('errors.nested', repeat('{"a":', 10000) || '1' || repeat('}', 10000));
        RAISE EXCEPTION 'undo' USING ERRCODE = 'OB000';
    EXCEPTION
        WHEN SQLSTATE 'OB000' OR statement_too_complex THEN RAISE NOTICE '10000 levels: accepted or refused';
    END;
END
$$;

-- payloads that are too large, in each form; text is not even parsed then
SHOW outbox.max_payload_size;
SELECT pg_temp.attempt_emit($$'errors.large', repeat('x', 1048577)$$);
SELECT pg_temp.attempt_emit($$'errors.large', to_json(repeat('x', 1048575))$$);
SELECT pg_temp.attempt_emit($$'errors.large', to_jsonb(repeat('x', 1048575))$$);
-- characters of several bytes, and blanks that jsonb puts in
SELECT pg_temp.attempt_emit($$'errors.large', to_json(repeat('é', 524288))$$);
BEGIN;
SET LOCAL outbox.max_payload_size = 10;
SELECT pg_temp.attempt_emit($$'errors.large', '{"a":1234}'$$);
SELECT pg_temp.attempt_emit($$'errors.large', '{"a":1234}'::json$$);
SELECT pg_temp.attempt_emit($$'errors.large', '{"a":1234}'::jsonb$$);
SELECT pg_temp.attempt_emit($$'errors.large', '{"a":12345}'$$);
ROLLBACK;
BEGIN;
SELECT pg_temp.attempt_emit($$'errors.large', to_json(repeat('x', 1048574))$$);
ROLLBACK;

-- aggregates
SELECT pg_temp.attempt_emit($$'errors.aggregate', '{}', aggregate_id => repeat('x', 1001)$$);
SELECT pg_temp.attempt_emit($$'errors.aggregate', '{}', aggregate_type => repeat('é', 501)$$);

-- versions
SELECT pg_temp.attempt_emit($$'errors.version', '{}', version => 0$$);
SELECT pg_temp.attempt_emit($$'errors.version', '{}', version => -2147483648$$);
SELECT pg_temp.state($$SELECT outbox.emit('errors.version', '{}', version => 2147483648)$$);

-- headers
SELECT pg_temp.attempt_emit($$'errors.headers', '{}', headers => '[]'$$);
SELECT split_part(pg_temp.attempt_emit(format('%L, %L, headers => %L', 'errors.headers', '{}', headers)), E'\n', 1)
FROM unnest(ARRAY['1', '"a"', 'null', 'true', '[{}]', '{"a": []}', '{"a": {}}', '{"a": [1]}', '{"a": 1, "b": {"c": 2}}', '["a", "b"]']) AS headers;
SELECT pg_temp.state($$SELECT outbox.emit('errors.headers', '{}', headers => 'x')$$);
SELECT pg_temp.attempt_emit($$'errors.headers', '{}', headers => jsonb_build_object('a', repeat('x', 65536))$$);
SELECT split_part(pg_temp.attempt_emit($$'errors.headers', '{}', headers => (repeat('[', 1000) || repeat(']', 1000))::jsonb$$), E'\n', 1);

-- times
SELECT pg_temp.attempt_emit($$'errors.time', '{}', occurred_at => 'infinity'$$);
SELECT split_part(pg_temp.attempt_emit(format('%L, %L, occurred_at => %L', 'errors.time', '{}', at)), E'\n', 1)
FROM unnest(ARRAY['-infinity', '0001-12-31 23:59:59.999999+00 BC', '10000-01-01 00:00:00+00', '4713-01-01 00:00:00+00 BC',
    '294276-12-31 23:59:59+00']) AS at;
SELECT pg_temp.state($$SELECT outbox.emit('errors.time', '{}', occurred_at => 'yesterdayish')$$);
SELECT pg_temp.state($$SELECT outbox.emit('errors.id', '{}', event_id => 'x')$$);

-- where nothing may be written
BEGIN READ ONLY;
SELECT pg_temp.attempt_emit($$'errors.read_only', '{}'$$);
COMMIT;
SET default_transaction_read_only = on;
SELECT pg_temp.attempt_emit($$'errors.read_only', '{}'$$);
RESET default_transaction_read_only;
BEGIN;
SELECT set_config(CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'force_parallel_mode' ELSE 'debug_parallel_query' END,
    'on', true);
CREATE FUNCTION pg_temp.emit_in_parallel() RETURNS uuid LANGUAGE plpgsql PARALLEL SAFE
    AS $$ BEGIN RETURN outbox.emit('errors.parallel', '{}'); END $$;
SAVEPOINT a;
\set VERBOSITY terse
SELECT pg_temp.emit_in_parallel();
\set VERBOSITY default
ROLLBACK;

-- nothing is half done: what was there before an error is there after it, and the transaction can go on
BEGIN;
SELECT count(outbox.emit('errors_half.before', '{}'));
SAVEPOINT a;
SELECT outbox.emit('errors_half.after', '{}', occurred_at => 'infinity');
SELECT outbox.emit('errors_half.after', '{}');
ROLLBACK TO a;
SELECT count(outbox.emit('errors_half.after', '{}'));
COMMIT;
-- a row that cannot be emitted takes the other rows of its statement with it
\set VERBOSITY terse
SELECT count(outbox.emit('errors_half.row', CASE n WHEN 3 THEN 'x' ELSE '{}' END)) FROM generate_series(1, 5) n;
\set VERBOSITY default
SELECT event_type FROM outbox.event WHERE topic = 'errors_half' ORDER BY seq;
SELECT count(*) FROM outbox.event WHERE topic = 'errors';

-- flush
SELECT pg_temp.attempt($$SELECT outbox.flush('-1 ms')$$);
SELECT outbox.flush('0');
SELECT outbox.flush('20 ms');
-- it can be cancelled, however long it was told to wait
BEGIN;
SET LOCAL statement_timeout = '1s';
SELECT pg_temp.state($$SELECT outbox.flush(NULL)$$);
SELECT pg_temp.state($$SELECT outbox.flush('1 month')$$);
SELECT pg_temp.state($$SELECT outbox.flush('300000 years')$$);
ROLLBACK;

-- sinks that are not there
SELECT pg_temp.attempt($$SELECT outbox.pause('nowhere')$$);
SELECT pg_temp.attempt($$SELECT outbox.resume('nowhere')$$);
SELECT split_part(pg_temp.attempt($$SELECT outbox.pause(NULL)$$), E'\n', 1);
SELECT pg_temp.attempt($$SELECT count(*) FROM outbox.verify('nowhere')$$);
SELECT pg_temp.attempt(format('SELECT count(*) FROM outbox.verify(%L)', repeat('x', 300))) LIKE '42704 sink "xxx%does not exist%HINT%' AS too_long;
SELECT pg_temp.attempt($$SELECT count(*) FROM outbox.verify(NULL)$$);

-- verify
SELECT pg_temp.attempt($$SELECT count(*) FROM outbox.verify(since => '2026-01-02', until => '2026-01-01')$$);
SELECT outbox.resume();
SELECT pg_temp.attempt($$SELECT count(*) FROM outbox.verify()$$);

-- a database without the extension
CREATE DATABASE regress_outbox_without;
\c regress_outbox_without
CREATE FUNCTION emit(text, text, text, text, int, jsonb, text, timestamptz, uuid) RETURNS uuid LANGUAGE c AS '$libdir/outbox', 'outbox_emit_text';
SELECT emit('errors.without', '{}', NULL, NULL, 1, NULL, NULL, NULL, NULL);
CREATE FUNCTION flush(interval) RETURNS boolean LANGUAGE c AS '$libdir/outbox', 'outbox_flush';
SELECT flush('0');
-- and one that had it
CREATE EXTENSION outbox;
PREPARE e AS SELECT outbox.emit('errors.dropped', '{}') IS NOT NULL;
EXECUTE e;
SELECT count(*) FROM outbox.event;
DROP EXTENSION outbox;
SELECT nspname FROM pg_namespace WHERE nspname = 'outbox';
SELECT emit('errors.without', '{}', NULL, NULL, 1, NULL, NULL, NULL, NULL);
\set VERBOSITY sqlstate
EXECUTE e;
\set VERBOSITY default
CREATE EXTENSION outbox;
SELECT emit('errors.again', '{}', NULL, NULL, 1, NULL, NULL, NULL, NULL) IS NOT NULL;
SELECT event_type FROM outbox.event;
\c regression
DROP DATABASE regress_outbox_without;
