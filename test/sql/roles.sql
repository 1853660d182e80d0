-- Who may do what: attempts that must fail, and the few things that must not.

\set SHOW_CONTEXT never
CREATE ROLE regress_outbox_plain;
CREATE ROLE regress_outbox_emitter IN ROLE outbox_emitter;
CREATE ROLE regress_outbox_reader IN ROLE outbox_reader;
CREATE ROLE regress_outbox_admin IN ROLE outbox_admin;
CREATE SCHEMA regress_theirs;
GRANT CREATE, USAGE ON SCHEMA regress_theirs TO PUBLIC;
SELECT count(outbox.emit('roles_secret.happened', '{"secret": 42}'));

-- the four of the extension: nobody's login, nobody's superuser, members of nothing
SELECT rolname, rolsuper, rolcanlogin, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls,
    (SELECT count(*) FROM pg_auth_members WHERE member = r.oid) AS member_of
FROM pg_roles r WHERE rolname LIKE 'outbox@_%' ESCAPE '@' ORDER BY rolname COLLATE "C";
-- one of them owns every table, view and sequence, and what runs with its owner's rights
SELECT DISTINCT relowner::regrole AS owner FROM pg_class WHERE relnamespace = 'outbox'::regnamespace;
SELECT DISTINCT proowner::regrole AS owner FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace AND prosecdef;
-- which has a search_path that nobody can put anything into
SELECT oid::regprocedure AS unsafe FROM pg_proc
WHERE pronamespace = 'outbox'::regnamespace AND prosecdef AND proconfig IS DISTINCT FROM ARRAY['search_path=pg_catalog, pg_temp'];

-- PUBLIC has nothing
SELECT p.oid::regprocedure AS function, privilege_type FROM pg_proc p, aclexplode(COALESCE(proacl, acldefault('f', proowner)))
WHERE pronamespace = 'outbox'::regnamespace AND grantee = 0;
SELECT c.oid::regclass AS relation, privilege_type
FROM pg_class c, aclexplode(COALESCE(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)))
WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'v', 'S') AND grantee = 0;
SELECT privilege_type FROM pg_namespace, aclexplode(COALESCE(nspacl, acldefault('n', nspowner))) WHERE nspname = 'outbox' AND grantee = 0;
-- nobody may pass on what he has, or do more to a table than read it
SELECT c.oid::regclass AS relation, grantee::regrole, privilege_type, is_grantable FROM pg_class c, aclexplode(relacl)
WHERE relnamespace = 'outbox'::regnamespace AND grantee <> relowner AND (is_grantable OR privilege_type <> 'SELECT');
SELECT attrelid::regclass, attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
WHERE relnamespace = 'outbox'::regnamespace AND attacl IS NOT NULL;

-- the grants, all of them
SELECT p.oid::regprocedure AS function, string_agg(r.rolname, ', ' ORDER BY r.rolname COLLATE "C") AS may_execute
FROM pg_proc p JOIN pg_roles r ON r.rolname IN ('outbox_emitter', 'outbox_reader', 'outbox_admin', 'regress_outbox_plain')
    AND has_function_privilege(r.oid, p.oid, 'EXECUTE')
WHERE p.pronamespace = 'outbox'::regnamespace GROUP BY p.oid ORDER BY p.oid::regprocedure::text COLLATE "C";
SELECT c.oid::regclass AS relation, string_agg(r.rolname, ', ' ORDER BY r.rolname COLLATE "C") AS may_select
FROM pg_class c JOIN pg_roles r ON r.rolname IN ('outbox_emitter', 'outbox_reader', 'outbox_admin', 'regress_outbox_plain')
    AND has_table_privilege(r.oid, c.oid, 'SELECT')
WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'v') GROUP BY c.oid ORDER BY c.oid::regclass::text COLLATE "C";

-- every way to write to a table, or to hang something on it: tried as each of them, none may pass
CREATE FUNCTION regress_theirs.attempt(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END
$$;
CREATE FUNCTION regress_theirs.on_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TABLE regress_theirs.attack AS
    SELECT c.oid::regclass::text AS target, format(template, c.oid::regclass, attname) AS statement
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND attnum = 1
    JOIN (VALUES
        ('r', 'INSERT INTO %1$s SELECT * FROM %1$s'),
        ('r', 'INSERT INTO %1$s DEFAULT VALUES'),
        ('r', 'UPDATE %1$s SET %2$I = %2$I'),
        ('r', 'DELETE FROM %1$s'),
        ('r', 'MERGE INTO %1$s USING (VALUES (1)) v ON true WHEN MATCHED THEN DELETE'),
        ('r', 'TRUNCATE %1$s'),
        ('r', 'LOCK %1$s'),
        ('r', 'SELECT FROM %1$s FOR UPDATE'),
        ('r', 'CREATE TRIGGER t AFTER INSERT ON %1$s FOR EACH ROW EXECUTE FUNCTION regress_theirs.on_row()'),
        ('r', 'CREATE RULE r AS ON INSERT TO %1$s DO INSTEAD NOTHING'),
        ('r', 'CREATE POLICY p ON %1$s'),
        ('r', 'CREATE INDEX ON %1$s (%2$I)'),
        ('r', 'CREATE TABLE regress_theirs.child () INHERITS (%1$s)'),
        ('r', 'ALTER TABLE %1$s ADD COLUMN c int'),
        ('r', 'ALTER TABLE %1$s OWNER TO CURRENT_USER'),
        ('r', 'ALTER TABLE %1$s ENABLE ROW LEVEL SECURITY'),
        ('r', 'ALTER TABLE %1$s SET SCHEMA regress_theirs'),
        ('r', 'COMMENT ON TABLE %1$s IS NULL'),
        ('r', 'DROP TABLE %1$s'),
        ('S', 'SELECT nextval(%1$L)'),
        ('S', 'SELECT setval(%1$L, 1)'),
        ('S', 'SELECT last_value FROM %1$s'),
        ('S', 'ALTER SEQUENCE %1$s RESTART'),
        ('S', 'DROP SEQUENCE %1$s')) AS attack (relkind, template) ON attack.relkind = c.relkind::text
    WHERE relnamespace = 'outbox'::regnamespace;
INSERT INTO regress_theirs.attack VALUES
    ('schema', 'CREATE TABLE outbox.theirs (a int)'),
    ('schema', 'CREATE VIEW outbox.theirs AS SELECT 1'),
    ('schema', 'CREATE FUNCTION outbox.theirs() RETURNS int LANGUAGE sql AS ''SELECT 1'''),
    ('schema', 'CREATE OPERATOR outbox.= (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)'),
    ('schema', 'ALTER SCHEMA outbox RENAME TO theirs'),
    ('schema', 'DROP SCHEMA outbox CASCADE'),
    ('extension', 'DROP EXTENSION outbox CASCADE'),
    ('extension', 'ALTER EXTENSION outbox UPDATE'),
    ('extension', 'ALTER EXTENSION outbox ADD TABLE regress_theirs.attack'),
    ('view', 'CREATE RULE r AS ON INSERT TO outbox.event DO INSTEAD NOTHING'),
    ('view', 'DROP VIEW outbox.event'),
    ('view', 'ALTER VIEW outbox.event OWNER TO CURRENT_USER'),
    ('view', 'SELECT payload FROM outbox.stored_event'),
    ('function', 'ALTER FUNCTION outbox.pause(text) RESET search_path'),
    ('function', 'SELECT outbox.keep_default_sink()'),
    ('function', 'SELECT outbox.wake()'),
    ('function', 'CREATE FUNCTION regress_theirs.own_emit(text, text, text, text, int, jsonb, text, timestamptz, uuid) RETURNS uuid LANGUAGE c '
        'AS ''$libdir/outbox'', ''outbox_emit_text'''),
    ('role', 'SET ROLE outbox_worker'),
    ('role', 'GRANT outbox_worker TO CURRENT_USER'),
    ('role', 'ALTER ROLE outbox_worker SUPERUSER'),
    ('role', 'ALTER ROLE outbox_worker LOGIN PASSWORD ''x'''),
    ('role', 'DROP ROLE outbox_worker');
GRANT SELECT ON regress_theirs.attack TO PUBLIC;
SELECT count(*) > 400 AS many FROM regress_theirs.attack;
-- 42809: a partition is nobody's parent
SET SESSION AUTHORIZATION regress_outbox_plain;
SELECT statement, outcome FROM (SELECT statement, regress_theirs.attempt(statement) AS outcome FROM regress_theirs.attack) a WHERE outcome NOT IN ('42501', '42809');
SET SESSION AUTHORIZATION regress_outbox_emitter;
SELECT statement, outcome FROM (SELECT statement, regress_theirs.attempt(statement) AS outcome FROM regress_theirs.attack) a WHERE outcome NOT IN ('42501', '42809');
SET SESSION AUTHORIZATION regress_outbox_reader;
SELECT statement, outcome FROM (SELECT statement, regress_theirs.attempt(statement) AS outcome FROM regress_theirs.attack) a WHERE outcome NOT IN ('42501', '42809');
SET SESSION AUTHORIZATION regress_outbox_admin;
SELECT statement, outcome FROM (SELECT statement, regress_theirs.attempt(statement) AS outcome FROM regress_theirs.attack) a WHERE outcome NOT IN ('42501', '42809');
RESET SESSION AUTHORIZATION;

-- what each may; the sink has a row from here on
SELECT outbox.resume();
CREATE TABLE regress_theirs.use (n int, statement text);
INSERT INTO regress_theirs.use VALUES
    (1, 'SELECT outbox.emit(''roles_used.happened'', ''{}'')'),
    (2, 'SELECT outbox.flush(''0'')'),
    (3, 'SELECT payload FROM outbox.event'),
    (4, 'SELECT * FROM outbox.sink'),
    (5, 'SELECT * FROM outbox.stat_sink'),
    (6, 'SELECT * FROM outbox.dead_letter'),
    (7, 'SELECT outbox.pause()'),
    (8, 'SELECT outbox.resume()'),
    (9, 'SET outbox.headers = ''{}'''),
    (10, 'SET outbox.max_payload_size = ''2MB'''),
    (11, 'SET outbox.redis_url = ''redis://169.254.169.254'''),
    (12, 'ALTER ROLE CURRENT_USER SET outbox.redis_url = ''redis://169.254.169.254'''),
    (13, 'SELECT * FROM outbox.verify()'),
    (14, 'SELECT * FROM outbox.stat_verify');
GRANT SELECT ON regress_theirs.use TO PUBLIC;
SET SESSION AUTHORIZATION regress_outbox_plain;
CREATE TEMP TABLE used AS SELECT n, current_user AS role, statement, regress_theirs.attempt(statement) AS outcome FROM regress_theirs.use ORDER BY n;
GRANT INSERT ON used TO PUBLIC;
SET SESSION AUTHORIZATION regress_outbox_emitter;
INSERT INTO used SELECT n, current_user AS role, statement, regress_theirs.attempt(statement) AS outcome FROM regress_theirs.use ORDER BY n;
SET SESSION AUTHORIZATION regress_outbox_reader;
INSERT INTO used SELECT n, current_user AS role, statement, regress_theirs.attempt(statement) AS outcome FROM regress_theirs.use ORDER BY n;
SET SESSION AUTHORIZATION regress_outbox_admin;
INSERT INTO used SELECT n, current_user AS role, statement, regress_theirs.attempt(statement) AS outcome FROM regress_theirs.use ORDER BY n;
RESET SESSION AUTHORIZATION;
SELECT statement, min(outcome) FILTER (WHERE role = 'regress_outbox_plain') AS plain,
    min(outcome) FILTER (WHERE role = 'regress_outbox_emitter') AS emitter, min(outcome) FILTER (WHERE role = 'regress_outbox_reader') AS reader,
    min(outcome) FILTER (WHERE role = 'regress_outbox_admin') AS admin
FROM used GROUP BY n, statement ORDER BY n;
RESET outbox.headers;
-- one who has nothing but EXECUTE emits too; whoever may not see the table cannot see what he has emitted
SET SESSION AUTHORIZATION regress_outbox_emitter;
SELECT count(outbox.emit('roles_used.more', '{}'));
\set VERBOSITY terse
SELECT count(*) FROM outbox.event;
SELECT count(*) FROM outbox.event_0;
\set VERBOSITY default
RESET SESSION AUTHORIZATION;
SELECT event_type, count(*) FROM outbox.event WHERE topic = 'roles_used' GROUP BY event_type ORDER BY event_type;

-- row level security on the outbox concerns nobody who emits
BEGIN;
ALTER TABLE outbox.event_0 ENABLE ROW LEVEL SECURITY;
ALTER TABLE outbox.event_0 FORCE ROW LEVEL SECURITY;
SET LOCAL SESSION AUTHORIZATION regress_outbox_emitter;
SELECT count(outbox.emit('roles_tenant.happened', '{}'));
RESET SESSION AUTHORIZATION;
SELECT count(*) FROM outbox.event_0 WHERE event_type = 'roles_tenant.happened';
ROLLBACK;

-- the owner itself has its tables and nothing else
CREATE TABLE regress_business (secret text);
CREATE TABLE regress_theirs.reach (n int, statement text);
INSERT INTO regress_theirs.reach VALUES
    (1, 'SELECT * FROM regress_business'), (2, 'SELECT rolpassword FROM pg_authid'), (3, 'SELECT * FROM pg_file_settings'),
    (4, 'SELECT pg_read_file(''postgresql.conf'')'), (5, 'COPY (SELECT 1) TO PROGRAM ''true'''), (6, 'COPY (SELECT 1) TO ''/tmp/x'''),
    (7, 'CREATE TABLE public.t (a int)'), (8, 'CREATE SCHEMA s'), (9, 'CREATE TABLE outbox.t (a int)'), (10, 'ALTER EXTENSION outbox UPDATE'),
    (11, 'CREATE ROLE r'), (12, 'SELECT pg_reload_conf()'),
    (13, 'SET session_replication_role = replica'), (14, 'SELECT lo_import(''/etc/passwd'')');
GRANT SELECT ON regress_theirs.reach TO PUBLIC;
SET SESSION AUTHORIZATION outbox_worker;
SELECT statement, regress_theirs.attempt(statement) AS outcome FROM regress_theirs.reach ORDER BY n;
RESET SESSION AUTHORIZATION;

-- operators, functions and tables of the attacker, found before everybody else's
CREATE SCHEMA regress_evil AUTHORIZATION regress_outbox_plain;
GRANT USAGE ON SCHEMA regress_evil TO PUBLIC;
SET SESSION AUTHORIZATION regress_outbox_plain;
CREATE FUNCTION regress_evil.attack() RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the attacker''s code runs as %', current_user; END $$;
DO $$
DECLARE
    what text;
BEGIN
    FOREACH what IN ARRAY ARRAY['text', 'name', 'int', 'bigint', 'boolean', 'uuid', 'oid', '"char"'] LOOP
        EXECUTE format('CREATE FUNCTION regress_evil.compare(%1$s, %1$s) RETURNS boolean LANGUAGE plpgsql AS '
            '''BEGIN PERFORM regress_evil.attack(); RETURN true; END''', what);
        EXECUTE format('CREATE OPERATOR regress_evil.= (LEFTARG = %1$s, RIGHTARG = %1$s, FUNCTION = regress_evil.compare)', what);
        EXECUTE format('CREATE OPERATOR regress_evil.<> (LEFTARG = %1$s, RIGHTARG = %1$s, FUNCTION = regress_evil.compare)', what);
        EXECUTE format('CREATE OPERATOR regress_evil.> (LEFTARG = %1$s, RIGHTARG = %1$s, FUNCTION = regress_evil.compare)', what);
    END LOOP;
END
$$;
CREATE FUNCTION regress_evil.concatenate(text, text) RETURNS text LANGUAGE sql AS $$ SELECT regress_evil.attack()::text $$;
CREATE OPERATOR regress_evil.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_evil.concatenate);
CREATE FUNCTION regress_evil.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT regress_evil.attack()::text::timestamptz $$;
CREATE FUNCTION regress_evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT regress_evil.attack()::text::timestamptz $$;
CREATE FUNCTION regress_evil.gen_random_uuid() RETURNS uuid LANGUAGE sql AS $$ SELECT regress_evil.attack()::text::uuid $$;
CREATE FUNCTION regress_evil.format(text, text) RETURNS text LANGUAGE sql AS $$ SELECT regress_evil.attack()::text $$;
CREATE FUNCTION regress_evil.format(text, int) RETURNS text LANGUAGE sql AS $$ SELECT regress_evil.attack()::text $$;
CREATE FUNCTION regress_evil.split_part(text, text, int) RETURNS text LANGUAGE sql AS $$ SELECT regress_evil.attack()::text $$;
CREATE FUNCTION regress_evil.to_timestamp(numeric) RETURNS timestamptz LANGUAGE sql AS $$ SELECT regress_evil.attack()::text::timestamptz $$;
CREATE FUNCTION regress_evil.anchor() RETURNS int LANGUAGE sql AS $$ SELECT regress_evil.attack()::text::int $$;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA regress_evil TO PUBLIC;
CREATE TEMP TABLE sink_definition (id int, uuid uuid, name text, anchor int, paused boolean, take_over boolean);
CREATE TEMP TABLE event_0 (a int);
CREATE TEMP TABLE ring (generation bigint, started_at timestamptz);
CREATE TEMP TABLE pg_class (a int);
GRANT ALL ON sink_definition, event_0, ring TO PUBLIC;
RESET SESSION AUTHORIZATION;
SET search_path = pg_temp, regress_evil, pg_catalog;
-- the trap works
SELECT 'a'::text = 'b'::text;
SELECT outbox.pause();
SELECT outbox.resume();
SELECT outbox.keep_default_sink();
SELECT outbox.flush('0');
SELECT count(outbox.emit('roles_shadowed.happened', '{}', headers => '{"h": 1}', topic => 'roles'));
SELECT count(*) IS NOT NULL AS readable FROM outbox.event;
SELECT name FROM outbox.sink;
SELECT sink FROM outbox.stat_sink;
SET SESSION AUTHORIZATION regress_outbox_admin;
SELECT outbox.pause();
SELECT outbox.resume();
SELECT * FROM outbox.verify('nowhere');
SELECT sink FROM outbox.stat_sink;
SELECT count(sink) FROM outbox.stat_verify; -- the worker that found no such sink may still be leaving
RESET SESSION AUTHORIZATION;
SET SESSION AUTHORIZATION regress_outbox_emitter;
SELECT count(outbox.emit('roles_shadowed.happened', '{}', headers => '{"h": 1}', topic => 'roles'));
RESET SESSION AUTHORIZATION;
SELECT count(*) FROM pg_temp.sink_definition;
RESET search_path;
SELECT count(*) FROM outbox.event WHERE event_type = 'roles_shadowed.happened';
-- at installation too
CREATE DATABASE regress_outbox_evil;
\c regress_outbox_evil
CREATE SCHEMA regress_evil AUTHORIZATION regress_outbox_plain;
GRANT USAGE ON SCHEMA regress_evil TO PUBLIC;
SET SESSION AUTHORIZATION regress_outbox_plain;
CREATE FUNCTION regress_evil.attack() RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the attacker''s code runs as %', current_user; END $$;
CREATE FUNCTION regress_evil.compare(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT regress_evil.attack() $$;
CREATE FUNCTION regress_evil.compare(name, text) RETURNS boolean LANGUAGE sql AS $$ SELECT regress_evil.attack() $$;
CREATE FUNCTION regress_evil.compare(oid, oid) RETURNS boolean LANGUAGE sql AS $$ SELECT regress_evil.attack() $$;
CREATE FUNCTION regress_evil.compare(int, int) RETURNS boolean LANGUAGE sql AS $$ SELECT regress_evil.attack() $$;
CREATE OPERATOR regress_evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_evil.compare);
CREATE OPERATOR regress_evil.= (LEFTARG = name, RIGHTARG = text, FUNCTION = regress_evil.compare);
CREATE OPERATOR regress_evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = regress_evil.compare);
CREATE OPERATOR regress_evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = regress_evil.compare);
CREATE FUNCTION regress_evil.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS $$ SELECT regress_evil.attack()::text $$;
CREATE FUNCTION regress_evil.format(text, text) RETURNS text LANGUAGE sql AS $$ SELECT regress_evil.attack()::text $$;
CREATE FUNCTION regress_evil.format(text, int) RETURNS text LANGUAGE sql AS $$ SELECT regress_evil.attack()::text $$;
RESET SESSION AUTHORIZATION;
SET search_path = regress_evil, pg_catalog;
CREATE EXTENSION outbox;
SELECT outbox.pause();
SELECT count(outbox.emit('roles_shadowed.happened', '{}'));
SELECT event_type, status FROM outbox.event;
RESET search_path;
DROP EXTENSION outbox;

-- a schema that is somebody else's is not taken over
CREATE SCHEMA outbox AUTHORIZATION regress_outbox_plain;
CREATE EXTENSION outbox;
DROP SCHEMA outbox;
-- nor is a role that could do more than the outbox may
ALTER ROLE outbox_worker SUPERUSER;
CREATE EXTENSION outbox;
ALTER ROLE outbox_worker NOSUPERUSER;
ALTER ROLE outbox_worker LOGIN;
CREATE EXTENSION outbox;
ALTER ROLE outbox_worker NOLOGIN;
\set VERBOSITY terse
ALTER ROLE outbox_worker BYPASSRLS;
CREATE EXTENSION outbox;
ALTER ROLE outbox_worker NOBYPASSRLS CREATEROLE;
CREATE EXTENSION outbox;
ALTER ROLE outbox_worker NOCREATEROLE CREATEDB;
CREATE EXTENSION outbox;
ALTER ROLE outbox_worker NOCREATEDB REPLICATION;
CREATE EXTENSION outbox;
ALTER ROLE outbox_worker NOREPLICATION;
GRANT pg_execute_server_program TO outbox_worker;
CREATE EXTENSION outbox;
REVOKE pg_execute_server_program FROM outbox_worker;
GRANT outbox_worker TO regress_outbox_plain;
CREATE EXTENSION outbox;
REVOKE outbox_worker FROM regress_outbox_plain;
ALTER ROLE outbox_emitter SUPERUSER;
CREATE EXTENSION outbox;
ALTER ROLE outbox_emitter NOSUPERUSER;
ALTER ROLE outbox_reader BYPASSRLS;
CREATE EXTENSION outbox;
ALTER ROLE outbox_reader NOBYPASSRLS;
ALTER ROLE outbox_admin CREATEROLE;
CREATE EXTENSION outbox;
ALTER ROLE outbox_admin NOCREATEROLE;
\set VERBOSITY default
SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox';
-- and only a superuser may install it
GRANT CREATE ON DATABASE regress_outbox_evil TO regress_outbox_plain;
SET SESSION AUTHORIZATION regress_outbox_plain;
\set VERBOSITY terse
CREATE EXTENSION outbox;
\set VERBOSITY default
RESET SESSION AUTHORIZATION;
CREATE EXTENSION outbox;
\c regression
DROP DATABASE regress_outbox_evil;

SET client_min_messages = warning;
DROP SCHEMA regress_theirs, regress_evil CASCADE;
RESET client_min_messages;
DROP TABLE regress_business;
DROP ROLE regress_outbox_plain, regress_outbox_emitter, regress_outbox_reader, regress_outbox_admin;
