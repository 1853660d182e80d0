-- what to look at first, and what to alert on

CREATE OR REPLACE VIEW outbox.stat_sink AS
    SELECT s.name AS sink,
           CASE WHEN s.restored THEN 'paused (restored)' WHEN s.paused THEN 'paused'
                ELSE COALESCE(w.state, 'no worker') END AS state,
           w.pid, w.since,
           lag.events AS lag_events,
           GREATEST(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - lag.oldest), 0) AS lag_seconds,
           w.published, w.throughput, w.batches, w.errors, w.duplicates_rejected, w.healed,
           w.last_error, w.last_error_at,
           held.streams AS held_streams, dead.letters AS dead_letters,
           CASE WHEN c.ms > 0 THEN c.ms || '-' || GREATEST(c.n, 0) END AS position, c.confirmed_at,
           w.held_back_by AS retention_held_back_by,
           r.trimmed, r.can_evict
    FROM outbox.sink s
    JOIN outbox.sink_cursor c ON c.sink_id = s.id
    LEFT JOIN outbox.worker_state() w ON w.sink_id = s.id
    LEFT JOIN outbox.redis_state() r ON r.sink_id = s.id
    CROSS JOIN LATERAL (SELECT count(*) AS streams FROM outbox.stream
                         WHERE sink_id = s.id AND held_ms IS NOT NULL) held
    CROSS JOIN LATERAL (SELECT count(*) AS letters FROM outbox.dead_letter WHERE sink_id = s.id) dead
    -- a batch that is done as a whole need not be looked at
    CROSS JOIN LATERAL outbox.lag(s.id, CASE WHEN c.passed_ms >= c.ms THEN c.passed_ms + 1 ELSE c.ms END,
                                  CASE WHEN c.passed_ms >= c.ms THEN -1 ELSE c.n END) own
    CROSS JOIN LATERAL (SELECT CASE WHEN s.restored THEN outbox.restored_lag(s.id) ELSE 0 END AS events) brought
    CROSS JOIN LATERAL (SELECT own.events + brought.events AS events, own.oldest) lag;
COMMENT ON VIEW outbox.stat_sink IS 'the state of each sink: what to look at first, and what to alert on';
COMMENT ON COLUMN outbox.stat_sink.state IS
    'idle, connecting, streaming, healing, unconfirmed (its confirm level is not reached), backing off, fenced, paused, paused (restored), disabled, wrong version or no worker';
COMMENT ON COLUMN outbox.stat_sink.lag_events IS 'committed events that the sink has not confirmed; an estimate beyond ten thousand';
COMMENT ON COLUMN outbox.stat_sink.lag_seconds IS 'age of the oldest of them by its occurred_at, or from when it was delivered or appended again, in seconds; 0 when there is none';
COMMENT ON COLUMN outbox.stat_sink.published IS 'events appended since the worker started';
COMMENT ON COLUMN outbox.stat_sink.throughput IS 'events a second over the last seconds of work';
COMMENT ON COLUMN outbox.stat_sink.duplicates_rejected IS 'entries sent again after a crash and found in the stream already';
COMMENT ON COLUMN outbox.stat_sink.healed IS 'entries that Redis had lost and that were appended again';
COMMENT ON COLUMN outbox.stat_sink.held_streams IS 'streams that refuse entries and are being retried';
COMMENT ON COLUMN outbox.stat_sink.retention_held_back_by IS 'why old events could not be dropped the last time they were due; null when nothing holds them';
COMMENT ON COLUMN outbox.stat_sink.trimmed IS 'entries trimmed off its streams since the worker started';
COMMENT ON COLUMN outbox.stat_sink.can_evict IS
    'whether its Redis evicts streams when it is full (maxmemory with a policy allkeys-*), looked at once a minute; null: not known';

-- a name, as the value of a label
CREATE OR REPLACE FUNCTION outbox.metrics_label(value text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT '"' || replace(replace(replace(value, E'\\', E'\\\\'), '"', E'\\"'), E'\n', E'\\n') || '"'
$$;
COMMENT ON FUNCTION outbox.metrics_label(text) IS 'a text quoted for outbox.metrics()';

-- Names and types are those of Prometheus' text format. A name of a sink needs no escaping, that of a database or group does.
CREATE OR REPLACE FUNCTION outbox.metrics() RETURNS text
    LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
    WITH database AS (
        SELECT 'database=' || outbox.metrics_label(current_database()) AS label),
    sink AS MATERIALIZED (
        SELECT d.label || ',sink="' || s.sink || '"' AS label, s.* FROM outbox.stat_sink s CROSS JOIN database d),
    consumer AS MATERIALIZED (
        SELECT d.label || ',sink="' || c.sink || '",stream=' || outbox.metrics_label(c.stream)
               || ',group=' || outbox.metrics_label(c.consumer_group) AS label, c.*
          FROM outbox.stat_consumer c CROSS JOIN database d),
    storage AS (
        SELECT d.label, sum(pg_total_relation_size(c.oid)) AS bytes
          FROM pg_class c CROSS JOIN database d
         WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'r'
           AND c.relname ~ '^(event|tick|dedupe)_[0-7]$|^delayed_[0-9]+$'
         GROUP BY d.label),
    retention AS (
        SELECT d.label, sum(r.bytes) FILTER (WHERE r.state <> 'empty') AS bytes, count(*) FILTER (WHERE r.state <> 'empty') AS partitions,
               max(extract(epoch FROM clock_timestamp() - r.started_at)) FILTER (WHERE r.state <> 'empty') AS oldest,
               max(extract(epoch FROM clock_timestamp() - r.held_back_since)) AS held_back
          FROM outbox.stat_retention r CROSS JOIN database d GROUP BY d.label),
    sample AS (
        SELECT v.* FROM sink s CROSS JOIN LATERAL (VALUES
            (1, 'outbox_up', 'gauge', 'whether the sink is served: 0 while it is paused, fenced, unconfirmed, backing off or has no worker',
                s.label, CASE WHEN s.state IN ('idle', 'streaming', 'healing') THEN 1 ELSE 0 END::double precision),
            (2, 'outbox_state', 'gauge', 'the state of the sink, as in stat_sink',
                s.label || ',state="' || s.state || '"', 1),
            (3, 'outbox_lag_events', 'gauge', 'committed events that are not published, an estimate beyond ten thousand', s.label, s.lag_events),
            (4, 'outbox_lag_seconds', 'gauge', 'age of the oldest event that is not published', s.label, COALESCE(s.lag_seconds, 0)),
            (5, 'outbox_published_total', 'counter', 'events published since the worker started', s.label, s.published),
            (6, 'outbox_batches_total', 'counter', 'batches published since the worker started', s.label, s.batches),
            (7, 'outbox_errors_total', 'counter', 'errors since the worker started', s.label, s.errors),
            (8, 'outbox_duplicates_rejected_total', 'counter', 'entries that were sent again and found in their streams', s.label, s.duplicates_rejected),
            (9, 'outbox_healed_total', 'counter', 'entries that Redis had lost and that were appended again', s.label, s.healed),
            (10, 'outbox_held_streams', 'gauge', 'streams that refuse entries and are being retried', s.label, s.held_streams),
            (11, 'outbox_dead_letters', 'gauge', 'events that were given up', s.label, s.dead_letters),
            (12, 'outbox_retention_held_back', 'gauge', 'whether something keeps old events from being dropped',
                s.label, CASE WHEN s.retention_held_back_by IS NULL THEN 0 ELSE 1 END)
        ) v(n, name, type, help, label, value)
        UNION ALL
        SELECT v.* FROM sink s CROSS JOIN LATERAL (VALUES
            (14, 'outbox_trimmed_total', 'counter', 'entries trimmed off the streams since the worker started', s.label, s.trimmed::double precision),
            (15, 'outbox_redis_eviction', 'gauge', 'whether Redis evicts streams when it is full: maxmemory with a policy allkeys-*',
                s.label, s.can_evict::int)
        ) v(n, name, type, help, label, value)
        UNION ALL
        SELECT v.* FROM consumer c CROSS JOIN LATERAL (VALUES
            (16, 'outbox_group_lag', 'gauge', 'entries of the stream that the group was not given yet', c.label, c.lag::double precision),
            (17, 'outbox_group_pending', 'gauge', 'entries that the group was given and has not acknowledged', c.label, c.pending),
            (18, 'outbox_group_oldest_pending_seconds', 'gauge', 'age of the oldest of them, since it was recorded for the stream',
                c.label, COALESCE(date_part('epoch', c.oldest_pending_age), 0)),
            (19, 'outbox_group_consumers', 'gauge', 'consumers that the group has', c.label, c.consumers),
            (20, 'outbox_group_dead_letters', 'gauge', 'dead letters of the group', c.label, c.dead_letters)
        ) v(n, name, type, help, label, value)
        UNION ALL
        SELECT 13, 'outbox_storage_bytes', 'gauge', 'what stored events, ticks and delayed events take on disk, with their indexes', label, bytes FROM storage
        UNION ALL
        SELECT 21, 'outbox_delayed_events', 'gauge', 'events that are to be delivered later', label, events FROM database, outbox.stat_delayed
        UNION ALL
        SELECT 22, 'outbox_delayed_oldest_overdue_seconds', 'gauge', 'for how long the first of them should have been delivered',
               label, COALESCE(overdue_seconds, 0) FROM database, outbox.stat_delayed
        UNION ALL
        SELECT v.* FROM retention r CROSS JOIN LATERAL (VALUES
            (40, 'outbox_retention_bytes', 'gauge', 'what the partitions that hold events take on disk', r.label, r.bytes::double precision),
            (41, 'outbox_retention_limit_bytes', 'gauge', 'outbox.retention_size; 0: no bound', r.label,
                pg_size_bytes(current_setting('outbox.retention_size', true))),
            (42, 'outbox_retention_partitions', 'gauge', 'partitions of eight that hold events', r.label, r.partitions),
            (43, 'outbox_retention_oldest_seconds', 'gauge', 'age of the oldest partition that holds events', r.label, COALESCE(r.oldest, 0)),
            (44, 'outbox_retention_held_back_seconds', 'gauge', 'age of what keeps old events from being dropped; 0: nothing does', r.label,
                COALESCE(r.held_back, 0))
        ) v(n, name, type, help, label, value)),
    family AS (
        SELECT n, '# HELP ' || name || ' ' || help || E'\n# TYPE ' || name || ' ' || type || E'\n'
                  || string_agg(name || '{' || label || '} ' || value || E'\n', '' ORDER BY label) AS text
          FROM sample WHERE value IS NOT NULL GROUP BY n, name, help, type)
    SELECT string_agg(text, '' ORDER BY n) FROM family
$$;
COMMENT ON FUNCTION outbox.metrics() IS 'what outbox.stat_sink and outbox.stat_consumer say, in the text format of Prometheus';
