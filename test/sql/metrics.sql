-- outbox.metrics(): stat_sink in the text format of Prometheus

SELECT outbox.emit('metrics_waiting.happened', '{}') IS NOT NULL AS emitted FROM generate_series(1, 3);
-- what a worker counts is there when the worker is
DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM outbox.worker_state() WHERE pid <> 0) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$;
CREATE TEMP TABLE line AS SELECT n, line FROM regexp_split_to_table(outbox.metrics(), E'\n') WITH ORDINALITY AS l(line, n);
SELECT line FROM line WHERE line LIKE '#%' ORDER BY n;
-- each sample follows its family, and the text ends with a new line
SELECT line FROM line WHERE line NOT LIKE '#%' AND line !~ '^outbox_[a-z_]+\{[^{}]*\} -?[0-9.e+-]+$' ORDER BY n;
SELECT count(*) FROM (SELECT line, lag(line) OVER (ORDER BY n) AS before FROM line) l
 WHERE line LIKE 'outbox_%' AND split_part(line, '{', 1) NOT IN (split_part(before, ' ', 3), split_part(before, '{', 1));

-- the figures are those of the view
CREATE TEMP TABLE sample AS
    SELECT split_part(line, '{', 1) AS name, substring(line FROM 'sink="([^"]*)"') AS sink, split_part(line, '} ', 2)::float8 AS value, line
      FROM line WHERE line LIKE 'outbox_%';
SELECT s.sink, up.value = CASE WHEN s.state IN ('idle', 'streaming', 'healing') THEN 1 ELSE 0 END AS up, lag.value = s.lag_events AS lag_events,
       age.value BETWEEN s.lag_seconds - 60 AND s.lag_seconds AS lag_seconds, dead.value = s.dead_letters AS dead_letters,
       held.value = s.held_streams AS held_streams, back.value = (s.retention_held_back_by IS NOT NULL)::int AS held_back
  FROM outbox.stat_sink s
  JOIN sample up ON up.sink = s.sink AND up.name = 'outbox_up'
  JOIN sample lag ON lag.sink = s.sink AND lag.name = 'outbox_lag_events'
  JOIN sample age ON age.sink = s.sink AND age.name = 'outbox_lag_seconds'
  JOIN sample dead ON dead.sink = s.sink AND dead.name = 'outbox_dead_letters'
  JOIN sample held ON held.sink = s.sink AND held.name = 'outbox_held_streams'
  JOIN sample back ON back.sink = s.sink AND back.name = 'outbox_retention_held_back'
 ORDER BY s.sink;
SELECT value > 100000 AS has_storage FROM sample WHERE name = 'outbox_storage_bytes';

-- the name of a database may have anything in it
CREATE DATABASE "regress ""metrics\";
\c "regress ""metrics\"
SET client_min_messages = warning;
CREATE EXTENSION outbox;
SELECT DISTINCT substring(line FROM '\{(database="([^"\\]|\\.)*")') AS label
  FROM regexp_split_to_table(outbox.metrics(), E'\n') line WHERE line LIKE 'outbox_%';
\c regression
DROP DATABASE "regress ""metrics\";
