-- Sinks: what create_sink(), alter_sink() and drop_sink() take and refuse. (What the sinks then do: t/.)

\set SHOW_CONTEXT never

-- arguments
SELECT outbox.create_sink(NULL, 'redis://h');
SELECT outbox.create_sink('a', NULL);
SELECT outbox.create_sink('a', 'redis://h', stream => NULL);
SELECT outbox.create_sink('a', 'redis://h', start => NULL);
SELECT outbox.create_sink('', 'redis://h');
SELECT outbox.create_sink(E'a\nb', 'redis://h');
SELECT outbox.create_sink('a.*', 'redis://h');
SELECT outbox.create_sink(repeat('a', 64), 'redis://h');
SELECT outbox.create_sink('default', 'redis://h');
-- a URL that leads nowhere, or has a password, which no message shows
SELECT outbox.create_sink('a', 'http://h');
SELECT outbox.create_sink('a', 'redis://');
SELECT outbox.create_sink('a', 'redis://user:hunter2@h');
SELECT outbox.create_sink('a', 'unix://:hunter2@/run/redis.sock');
SELECT outbox.create_sink('a', 'redis://user:hunter 2@h');
SELECT outbox.create_sink('a', 'redis://' || repeat('h', 500));
-- patterns
SELECT outbox.create_sink('a', 'redis://h', topics => '{}');
SELECT outbox.create_sink('a', 'redis://h', topics => '{billing,NULL}');
SELECT outbox.create_sink('a', 'redis://h', topics => '{billing,"b c"}');
SELECT outbox.create_sink('a', 'redis://h', topics => ARRAY['billing.']);
SELECT outbox.create_sink('a', 'redis://h', event_types => '{billing}');
SELECT outbox.create_sink('a', 'redis://h', event_types => '{billing.**}');
SELECT outbox.create_sink('a', 'redis://h', event_types => '{}');
-- names of streams
SELECT outbox.create_sink('a', 'redis://h', stream => 'audit');
SELECT outbox.create_sink('a', 'redis://h', stream => '%t:%t');
SELECT outbox.create_sink('a', 'redis://h', stream => 'audit {%t}');
SELECT outbox.create_sink('a', 'redis://h', stream => '%x%t');
SELECT outbox.create_sink('a', 'redis://h', stream => 'outbox:sink:%t');
SELECT outbox.create_sink('a', 'redis://h', stream => 'outbox:{%t}:dlq:billing');
SELECT outbox.create_sink('a', 'redis://h', stream => repeat('a', 120) || '%t');
-- the start
SELECT outbox.create_sink('a', 'redis://h', start => 'yesterdayish');
SELECT outbox.create_sink('a', 'redis://h', start => (now() + interval '1 day')::text);
SELECT outbox.create_sink('a', 'redis://h', start => 'infinity');
SELECT outbox.create_sink('a', 'redis://h', start => '2026-13-45');
SELECT outbox.create_sink('a', 'redis://h', start => '12-0');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT outbox.create_sink('a', 'redis://h');
ROLLBACK;
SELECT count(*) FROM outbox.sink;

-- sinks
SELECT outbox.create_sink('a', 'redis://user@nowhere.invalid:7000/3', start => 'beginning');
SELECT outbox.create_sink('b', 'unix:///nowhere/redis.sock', topics => '{billing,shop.*}', event_types => '{*.*.created}', stream => 'b:{%t}');
SELECT name, url, topics, event_types, stream, paused, restored, uuid IS NOT NULL AS has_uuid FROM outbox.sink WHERE name <> 'default' ORDER BY id;
SELECT outbox.create_sink('a', 'redis://elsewhere.invalid');
-- trimming
SELECT outbox.create_sink('t', 'redis://t.invalid', trimming => 'everything');
SELECT outbox.create_sink('t', 'redis://t.invalid', trimming => 'limits');
SELECT outbox.create_sink('t', 'redis://t.invalid', trimming => 'limits', max_length => 0, max_age => '0');
SELECT outbox.create_sink('t', 'redis://t.invalid', max_length => 1000);
SELECT outbox.create_sink('t', 'redis://t.invalid', trimming => 'consumed', max_length => -1);
SELECT outbox.create_sink('t', 'redis://t.invalid', trimming => 'consumed', max_age => '-1 s');
SELECT outbox.create_sink('t', 'redis://t.invalid', trimming => 'consumed', max_age => '1000 years');
SELECT outbox.create_sink('t', 'redis://t.invalid', trimming => 'limits', max_length => 1000, max_age => '1 day');
SELECT trimming, max_length, max_age FROM outbox.sink WHERE name IN ('a', 't') ORDER BY name;
SELECT outbox.alter_sink('t', max_length => 0);
SELECT outbox.alter_sink('t', max_age => '0');
SELECT outbox.alter_sink('t', trimming => 'consumed');
SELECT outbox.alter_sink('t', max_age => '0');
SELECT trimming, max_length, max_age FROM outbox.sink WHERE name = 't';
SELECT outbox.alter_sink('t', max_length => 10);
SELECT outbox.alter_sink('t', trimming => 'off');
SELECT outbox.alter_sink('t', max_age => '1 h');
SELECT outbox.alter_sink('t', trimming => 'sometimes');
SELECT trimming, max_length, max_age FROM outbox.sink WHERE name = 't';
SELECT outbox.alter_sink('default', trimming => 'limits', max_age => '30 days');
SELECT trimming, max_length, max_age FROM outbox.sink WHERE name = 'default';
SELECT outbox.alter_sink('default', trimming => 'off', max_age => '0');
SET client_min_messages = warning;
SELECT outbox.drop_sink('t');
RESET client_min_messages;
-- two that would disturb each other
SELECT outbox.create_sink('c', 'redis://nowhere.invalid:7000/3');
SELECT outbox.create_sink('c', 'redis://nowhere.invalid:7000/3', stream => 'outbox:{a%t}');
SELECT outbox.create_sink('c', 'redis://nowhere.invalid:7000/3', stream => 'c:outbox:{%t}');
SELECT outbox.create_sink('d', 'redis://nowhere.invalid:7000/4');
SELECT outbox.create_sink('e', 'unix:///nowhere/redis.sock');
SELECT outbox.alter_sink('d', url => 'redis://nowhere.invalid:7000/3');
SELECT outbox.alter_sink('d', url => 'redis://user:hunter2@nowhere.invalid');
SELECT outbox.alter_sink('d', url => 'redis://nowhere.invalid:7000/5');
SELECT outbox.streams_overlap(one, other), one, other
FROM (VALUES ('a%t', 'b%t'), ('a:%t', 'a%t'), ('a:{%t}', 'a{%t}'), ('a%t', 'ab%t'), ('%t:a', '%t:b'), ('%t.a', '%t'), ('a%t', '%tb'), ('a:%t', '%t:b')) t(one, other);

-- changes
SELECT outbox.alter_sink('nonesuch', topics => '{a}');
SELECT outbox.alter_sink('default', url => 'redis://h');
SELECT outbox.alter_sink('b', topics => '{}');
SELECT outbox.alter_sink('b', topics => '{wallet}');
SELECT topics, event_types FROM outbox.sink WHERE name = 'b';
SELECT outbox.alter_sink('b', event_types => '{*}', topics => '{*}');
SELECT topics, event_types FROM outbox.sink WHERE name = 'b';
SELECT outbox.alter_sink('default', topics => '{wallet,billing}');
SELECT topics, event_types FROM outbox.sink WHERE name = 'default';
SELECT outbox.takes(1, NULL, 'billing.paid', 'billing') AS yes, outbox.takes(1, NULL, 'billing.paid', 'audit') AS no;
SELECT outbox.alter_sink('default', topics => '{*}');
BEGIN;
SELECT outbox.alter_sink('b', topics => '{never}');
ROLLBACK;
SELECT topics FROM outbox.sink WHERE name = 'b';
BEGIN;
SELECT outbox.alter_sink('b', topics => '{never}');
PREPARE TRANSACTION 'altered';
SELECT topics FROM outbox.sink WHERE name = 'b';
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT outbox.alter_sink('b', topics => '{never}');
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT outbox.drop_sink('b');
ROLLBACK;
SELECT outbox.pause('b');
SELECT name FROM outbox.sink WHERE paused;
SELECT outbox.resume('b');

-- events of each
SELECT outbox.emit('sinks.event.created', '{}', event_id => '22222222-2222-7222-9222-222222222222');
SELECT outbox.alter_sink('d', topics => '{other}');
SELECT sink, status, stream FROM outbox.sink_event WHERE event_id = '22222222-2222-7222-9222-222222222222' ORDER BY sink_id;
SELECT sink, lag_events > 0 AS lags FROM outbox.stat_sink WHERE sink IN ('b', 'd') ORDER BY 1;
SELECT outbox.flush('1 ms', 'b'), outbox.flush('1 ms', NULL);
SELECT outbox.flush('1 ms', 'nonesuch');

-- the end
SELECT outbox.drop_sink('default');
SELECT outbox.drop_sink('nonesuch');
SELECT outbox.drop_sink(NULL);
\set VERBOSITY terse
SET client_min_messages = warning;
SELECT outbox.drop_sink(name) FROM (VALUES ('a'), ('b'), ('c'), ('d'), ('e')) t(name);
RESET client_min_messages;
SELECT name FROM outbox.sink;
SELECT count(*) FROM outbox.sink_filter WHERE sink_id <> 1;
-- ids are not given twice
SELECT outbox.create_sink('a', 'redis://nowhere.invalid');
SELECT id FROM outbox.sink WHERE name = 'a';
SET client_min_messages = warning;
SELECT outbox.drop_sink('a');
RESET client_min_messages;
