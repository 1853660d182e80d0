-- outbox.headers: what a session adds to every event.

CREATE FUNCTION pg_temp.headers_of(topic text) RETURNS TABLE (event text, headers text) LANGUAGE sql AS $$
    SELECT e.event_type, e.headers::text FROM outbox.event e WHERE e.topic = headers_of.topic ORDER BY e.seq
$$;

-- none by default
SHOW outbox.headers;
SELECT count(outbox.emit('headers_none.happened', '{}'));
SELECT * FROM pg_temp.headers_of('headers_none');

-- those of the call: strings, numbers, booleans and nulls
SELECT count(outbox.emit('headers_own.happened', '{}', headers => '{"s": "x", "n": 1.50, "t": true, "z": null, "": "", "ü": "💸"}'));
SELECT count(outbox.emit('headers_own.empty', '{}', headers => '{}'));
SELECT count(outbox.emit('headers_own.brackets', '{}', headers => '{"{": "}", "[": "]\"{"}'));
SELECT * FROM pg_temp.headers_of('headers_own');

-- those of the transaction are added, and the call's own win
BEGIN;
SET LOCAL outbox.headers = '{"tenant": "blue", "trace": "1"}';
SELECT count(outbox.emit('headers_local.added', '{}'));
SELECT count(outbox.emit('headers_local.merged', '{}', headers => '{"cause": "x"}'));
SELECT count(outbox.emit('headers_local.own_win', '{}', headers => '{"trace": "2"}'));
SELECT count(outbox.emit('headers_local.own_null_wins', '{}', headers => '{"trace": null}'));
SELECT count(outbox.emit('headers_local.other_case', '{}', headers => '{"Trace": "2"}'));
SELECT count(outbox.emit('headers_local.null', '{}', headers => NULL));
SELECT count(outbox.emit('headers_local.empty', '{}', headers => '{}'));
COMMIT;
-- and are gone with it
SELECT count(outbox.emit('headers_local.after_commit', '{}'));
BEGIN;
SET LOCAL outbox.headers = '{"trace": "3"}';
ROLLBACK;
SELECT count(outbox.emit('headers_local.after_rollback', '{}'));
SELECT * FROM pg_temp.headers_of('headers_local');

-- with a savepoint
BEGIN;
SET LOCAL outbox.headers = '{"trace": "outer"}';
SAVEPOINT a;
SET LOCAL outbox.headers = '{"trace": "inner"}';
SELECT count(outbox.emit('headers_savepoint.lost', '{}'));
ROLLBACK TO a;
SELECT count(outbox.emit('headers_savepoint.outer', '{}'));
SET LOCAL outbox.headers = '{"trace": "released"}';
RELEASE a;
SELECT count(outbox.emit('headers_savepoint.released', '{}'));
COMMIT;
SELECT * FROM pg_temp.headers_of('headers_savepoint');

-- of the session, of a function
SET outbox.headers = '{"service": "billing"}';
SELECT count(outbox.emit('headers_session.set', '{}'));
RESET outbox.headers;
SELECT count(outbox.emit('headers_session.reset', '{}'));
SET outbox.headers = '{"service": "billing"}';
SET outbox.headers = '';
SELECT count(outbox.emit('headers_session.emptied', '{}'));
SELECT set_config('outbox.headers', json_build_object('user', 42)::text, true) AS set, count(outbox.emit('headers_session.config', '{}'));
CREATE FUNCTION headers_job() RETURNS bigint LANGUAGE sql SET outbox.headers = '{"job": "nightly"}'
    AS $$ SELECT count(outbox.emit('headers_session.function', '{}')) $$;
SELECT headers_job();
SELECT count(outbox.emit('headers_session.after_function', '{}'));
SELECT * FROM pg_temp.headers_of('headers_session');
DROP FUNCTION headers_job();
CREATE ROLE regress_outbox_headers IN ROLE outbox_emitter;
-- anybody may set them
SET ROLE regress_outbox_headers;
SET outbox.headers = '{"set": "by anybody"}';
SELECT count(outbox.emit('headers_role.happened', '{}'));
RESET outbox.headers;
RESET ROLE;
SELECT event_type, headers FROM outbox.event WHERE topic = 'headers_role';
DROP ROLE regress_outbox_headers;

-- what is not one flat JSON object is refused, and what was set before stays
SET outbox.headers = '{"trace": "kept"}';
SET outbox.headers = 'x';
SET outbox.headers = '{"a": {}}';
SET outbox.headers = '{"a": []}';
\set VERBOSITY terse
SET outbox.headers = '[]';
SET outbox.headers = '1';
SET outbox.headers = '"a"';
SET outbox.headers = 'null';
SET outbox.headers = ' ';
SET outbox.headers = '{';
SET outbox.headers = '{}}';
SET outbox.headers = '{} {}';
SET outbox.headers = '{"a": 1,}';
SET outbox.headers = '{"a" 1}';
SET outbox.headers = '{a: 1}';
SET outbox.headers = '{"a": "x}';
SET outbox.headers = '{"a": [1]}';
SET outbox.headers = '{"a": {"b": 1}}';
\set VERBOSITY default
SHOW outbox.headers;
SET outbox.headers = ' {"[": "{\"}]", "t": true} ';
SELECT count(outbox.emit('headers_refused.happened', '{}', headers => '{}'));
SELECT * FROM pg_temp.headers_of('headers_refused');
-- what jsonb cannot hold is refused by emit, with headers of its own and without
\set VERBOSITY sqlstate
SET outbox.headers = '{"a": "\u0000"}';
SELECT outbox.emit('headers_refused.happened', '{}');
SELECT outbox.emit('headers_refused.happened', '{}', headers => '{"b": 1}');
SET outbox.headers = '{"a": 1e1000000}';
SELECT outbox.emit('headers_refused.happened', '{}');
\set VERBOSITY default
-- they are sent as jsonb prints them: of two with one name the last
SET outbox.headers = '{"a":1,"a":2}';
SELECT count(outbox.emit('headers_refused.duplicate', '{}'));
SELECT * FROM pg_temp.headers_of('headers_refused');
RESET outbox.headers;

-- the whole of them has a limit too
SELECT set_config('outbox.headers', jsonb_build_object('a', repeat('x', 40000))::text, false) IS NOT NULL AS set;
SELECT count(outbox.emit('headers_long.happened', '{}', headers => jsonb_build_object('b', repeat('y', 25000))));
SELECT count(outbox.emit('headers_long.happened', '{}', headers => jsonb_build_object('b', repeat('y', 26000))));
RESET outbox.headers;
SELECT event, length(headers) FROM pg_temp.headers_of('headers_long');
