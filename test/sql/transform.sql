-- Who may give which function to a sink, and what is kept of it.

\set SHOW_CONTEXT never
CREATE ROLE regress_outbox_shaper;
CREATE ROLE regress_outbox_shaping_admin IN ROLE outbox_admin, outbox_reader;
CREATE ROLE regress_outbox_other_admin IN ROLE outbox_admin;
CREATE SCHEMA regress_shapes;
GRANT USAGE, CREATE ON SCHEMA regress_shapes TO regress_outbox_shaper;
SET ROLE regress_outbox_shaper;
CREATE FUNCTION regress_shapes.good(jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT CASE WHEN $1->'payload'->>'n' <> '2' THEN $1->'payload' END $$;
CREATE FUNCTION regress_shapes."Odd name"(jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION regress_shapes.late(jsonb) RETURNS jsonb LANGUAGE sql STABLE AS 'SELECT $1';
CREATE FUNCTION regress_shapes.words(jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1::text';
CREATE FUNCTION regress_shapes.many(jsonb) RETURNS SETOF jsonb LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION regress_shapes.of_json(json) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT $1::jsonb';
CREATE FUNCTION regress_shapes.hidden(jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT $1';
REVOKE EXECUTE ON FUNCTION regress_shapes.hidden FROM PUBLIC, regress_outbox_shaper;
RESET ROLE;

-- which
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'good');
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'regress_shapes.nonesuch');
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'nowhere.good');
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'regress_shapes.late');
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'regress_shapes.words');
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'regress_shapes.many');
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'regress_shapes.of_json');
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'regress_shapes.good(text)');

-- who: an administrator of outbox is not for that reason its owner
SET ROLE regress_outbox_other_admin;
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'regress_shapes.good');
RESET ROLE;
GRANT regress_outbox_shaper TO regress_outbox_shaping_admin;
SET ROLE regress_outbox_shaping_admin;
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'regress_shapes.hidden');
SELECT outbox.create_sink('shaped', 'redis://nowhere.invalid', transform => 'regress_shapes.good(jsonb)');
SELECT name, topics, transform FROM outbox.sink WHERE name = 'shaped';

-- what it withholds
RESET ROLE;
SELECT count(outbox.emit('regress_shape.made', jsonb_build_object('n', n))) FROM generate_series(1, 3) n;
SET ROLE regress_outbox_shaping_admin;
SELECT payload->>'n' AS n, status FROM outbox.sink_event WHERE sink = 'shaped' AND topic = 'regress_shape' ORDER BY seq;
-- one that fails withholds nothing
RESET ROLE;
SET ROLE regress_outbox_shaper;
CREATE OR REPLACE FUNCTION regress_shapes.good(jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT jsonb_build_object((1 / 0)::text, $1)';
RESET ROLE;
SELECT payload->>'n' AS n, status FROM outbox.sink_event WHERE sink = 'shaped' AND topic = 'regress_shape' ORDER BY seq;

-- changes
SELECT outbox.alter_sink('shaped', topics => '{never}');
SELECT topics, transform FROM outbox.sink WHERE name = 'shaped';
SELECT outbox.alter_sink('shaped', transform => 'regress_shapes."Odd name"');
SELECT topics, transform FROM outbox.sink WHERE name = 'shaped';
SELECT outbox.alter_sink('shaped', transform => 'none');
SELECT topics, transform FROM outbox.sink WHERE name = 'shaped';
SET ROLE regress_outbox_other_admin;
SELECT outbox.alter_sink('shaped', transform => 'regress_shapes.good');
RESET ROLE;

SET client_min_messages = warning;
SELECT outbox.drop_sink('shaped');
DROP SCHEMA regress_shapes CASCADE;
DROP ROLE regress_outbox_shaper, regress_outbox_shaping_admin, regress_outbox_other_admin;
