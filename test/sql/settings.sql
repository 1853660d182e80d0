-- The settings: type, unit, range, default and context of each, and what is refused.

SELECT name, boot_val AS value, unit, vartype AS type, min_val, max_val, context
FROM pg_settings WHERE name LIKE 'outbox.%' AND name <> 'outbox.redis_url' ORDER BY name COLLATE "C";
SELECT name, boot_val, unit, vartype AS type, context FROM pg_settings WHERE name = 'outbox.redis_url';
SELECT name FROM pg_settings WHERE name LIKE 'outbox.%' AND (short_desc IS NULL OR short_desc !~ '\.$') ORDER BY name;

-- who may change them, and where
\set VERBOSITY sqlstate
SET outbox.enabled = off;
SET outbox.redis_url = 'redis://elsewhere';
SET outbox.redis_password_file = '/etc/passwd';
SET outbox.retention = '1s';
SET outbox.batch_size = 100;
SET outbox.max_workers = 1;
ALTER DATABASE regression SET outbox.redis_url = 'redis://elsewhere';
ALTER ROLE CURRENT_USER SET outbox.retention = '1s';
SET outbox.max_payload_size = 0;
SET outbox.max_payload_size = '257MB';
SET outbox.max_payload_size = 'large';
SET outbox.max_payload_size = '256MB';
SHOW outbox.max_payload_size;
RESET outbox.max_payload_size;
ALTER SYSTEM SET outbox.retention = 0;
ALTER SYSTEM SET outbox.retention = '30000d';
ALTER SYSTEM SET outbox.retention_size = '3TB';
ALTER SYSTEM SET outbox.batch_size = 99;
ALTER SYSTEM SET outbox.batch_size = 1000001;
ALTER SYSTEM SET outbox.linger = -1;
ALTER SYSTEM SET outbox.linger = '101ms';
ALTER SYSTEM SET outbox.poll_interval = '9ms';
ALTER SYSTEM SET outbox.poll_interval = '61s';
ALTER SYSTEM SET outbox.retry_min = '9ms';
ALTER SYSTEM SET outbox.retry_max = '61min';
ALTER SYSTEM SET outbox.max_attempts = 0;
ALTER SYSTEM SET outbox.connect_timeout = '99ms';
ALTER SYSTEM SET outbox.response_timeout = '11min';
ALTER SYSTEM SET outbox.lease_timeout = '999ms';
ALTER SYSTEM SET outbox.consumer_interval = '99ms';
ALTER SYSTEM SET outbox.max_consumer_groups = 100001;
ALTER SYSTEM SET outbox.max_workers = 1025;
ALTER SYSTEM SET outbox.poll_interval = '10 parsecs';
ALTER SYSTEM SET outbox.enabled = perhaps;
\set VERBOSITY default

-- nobody's setting but outbox's own has its prefix
SET outbox.nonsense = 1;
\set VERBOSITY sqlstate
SHOW outbox.nonsense;
\set VERBOSITY default

-- a URL that leads nowhere is refused; the message never quotes it
ALTER SYSTEM SET outbox.redis_url = 'http://anna:hunter2@h';
ALTER SYSTEM SET outbox.redis_url = 'rediss://anna:hunter2@h:6380/0?sslmode=disable';
ALTER SYSTEM SET outbox.redis_url = 'redis://anna:hunter2@h:6380/0?sslrootcert=/etc/ca.pem';
ALTER SYSTEM SET outbox.redis_url = 'redis+sentinel://h:26379?sentinel_password=hunter2';
ALTER SYSTEM SET outbox.redis_url = 'redis://:hunter 2@h';
ALTER SYSTEM SET outbox.redis_url = 'redis://:hunter2@';
ALTER SYSTEM SET outbox.redis_url = 'redis://:hunter2@h:port';
ALTER SYSTEM SET outbox.redis_url = 'redis://:hunter2@h/database';
ALTER SYSTEM SET outbox.redis_url = 'redis://:hunter2%@h';
ALTER SYSTEM SET outbox.redis_url = 'unix://:hunter2@relative';
ALTER SYSTEM SET outbox.redis_url = '';

-- the password of a good one is in nothing that can be asked
ALTER SYSTEM SET outbox.redis_url = 'unix://anna:hunter2@/nonexistent/redis.sock?db=3';
SELECT pg_reload_conf();
\c -
SHOW outbox.redis_url;
SELECT current_setting('outbox.redis_url') AS current_setting, outbox.redis_url() AS redis_url;
SELECT url FROM outbox.sink;
SELECT name, setting FROM pg_settings s WHERE s.name LIKE 'outbox.redis%' ORDER BY name;
SELECT count(*) AS shown FROM pg_settings s WHERE s::text LIKE '%hunter2%';
SELECT count(*) AS shown FROM pg_show_all_settings() s WHERE s::text LIKE '%hunter2%';
SELECT count(*) AS shown FROM outbox.stat_sink s WHERE s::text LIKE '%hunter2%';
CREATE ROLE regress_outbox_monitor IN ROLE pg_monitor, outbox_reader;
CREATE ROLE regress_outbox_plain IN ROLE outbox_reader, outbox_admin, outbox_emitter;
SET ROLE regress_outbox_monitor;
SHOW outbox.redis_url;
SELECT count(*) AS shown FROM pg_settings s WHERE s::text LIKE '%hunter2%';
SELECT url FROM outbox.sink;
-- and without the right to read all settings there is only the view
SET ROLE regress_outbox_plain;
\set VERBOSITY sqlstate
SHOW outbox.redis_url;
SELECT current_setting('outbox.redis_url');
SELECT current_setting('outbox.redis_password_file');
\set VERBOSITY default
SELECT name FROM pg_settings WHERE name LIKE 'outbox.redis%';
SELECT url FROM outbox.sink;
RESET ROLE;
ALTER SYSTEM RESET outbox.redis_url;
SELECT pg_reload_conf();
\c -
SHOW outbox.redis_url;
DROP ROLE regress_outbox_monitor, regress_outbox_plain;
