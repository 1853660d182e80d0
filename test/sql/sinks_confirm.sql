-- The confirm level of a sink, as create_sink() and alter_sink() take it. (What it does: t/.)
\set SHOW_CONTEXT never
SELECT outbox.create_sink('a', 'redis://h', confirm => '');
SELECT outbox.create_sink('a', 'redis://h', confirm => 'disk');
SELECT outbox.create_sink('a', 'redis://h', confirm => 'replicas');
SELECT outbox.create_sink('a', 'redis://h', confirm => 'replicas(0)');
SELECT outbox.create_sink('a', 'redis://h', confirm => 'replicas(100)');
SELECT outbox.create_sink('a', 'redis://h', confirm => E'memory\nfsync');
SELECT outbox.alter_sink('default', confirm => 'replicas(-1)');
SELECT outbox.create_sink('plain', 'redis://nowhere.invalid:1');
SELECT outbox.create_sink('safe', 'redis://nowhere.invalid:2', confirm => 'fsync');
SELECT name, confirm FROM outbox.sink ORDER BY id;
SELECT outbox.alter_sink('default', confirm => 'replicas(2)');
SELECT outbox.alter_sink('safe', confirm => 'memory');
-- what is not named stays
SELECT outbox.alter_sink('default', topics => '{*}');
SELECT name, confirm FROM outbox.sink ORDER BY id;
SET client_min_messages = warning;
SELECT outbox.drop_sink('plain'), outbox.drop_sink('safe');
