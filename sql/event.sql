-- events, and how far each sink is

CREATE OR REPLACE FUNCTION outbox.anchor() RETURNS int
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_anchor';
COMMENT ON FUNCTION outbox.anchor() IS
    'identifies this cluster and database; events and ticks that carry another one came with a restored dump';

CREATE OR REPLACE FUNCTION outbox.worker_state(OUT sink_id int, OUT pid int, OUT state text, OUT since timestamptz,
        OUT cursor_ms bigint, OUT cursor_n bigint, OUT tick_ms bigint, OUT passed_ms bigint, OUT confirmed_at timestamptz,
        OUT published bigint, OUT batches bigint, OUT errors bigint, OUT duplicates_rejected bigint,
        OUT healed bigint, OUT throughput float8, OUT last_error text, OUT last_error_at timestamptz,
        OUT held_back_by text)
    RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'outbox_worker_state';
COMMENT ON FUNCTION outbox.worker_state() IS 'what the workers of this database say of themselves, from shared memory';

CREATE OR REPLACE FUNCTION outbox.locate(sink_id int, anchor int, xid xid8, seq bigint, start_ms bigint, OUT ms bigint, OUT n bigint)
    LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_locate';
COMMENT ON FUNCTION outbox.locate(int, int, xid8, bigint, bigint) IS
    'the tick that an event belongs to and its index in that batch, which is null in a tick before the sink''s start; nulls when no tick has been recorded for it yet';

CREATE OR REPLACE FUNCTION outbox.takes(sink_id int, ms bigint, event_type text, topic text) RETURNS boolean
    LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_takes';
COMMENT ON FUNCTION outbox.takes(int, bigint, text, text) IS
    'whether the filters of a sink take such an event of that tick; null: of one to come';

CREATE OR REPLACE FUNCTION outbox.passes(sink_id int, ms bigint, event_id uuid, event_type text, topic text, aggregate_type text,
        aggregate_id text, version int, occurred_at timestamptz, headers text, payload text, only_sink int) RETURNS boolean
    LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_passes';
COMMENT ON FUNCTION outbox.passes(int, bigint, uuid, text, text, text, text, int, timestamptz, text, text, int) IS
    'as outbox.takes(), with the sink''s transform, which may withhold the event; only_sink: the sink that it was appended again for, past the filters';

CREATE OR REPLACE FUNCTION outbox.lag(sink_id int, ms bigint, n bigint, OUT events bigint, OUT oldest timestamptz)
    LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_lag';
COMMENT ON FUNCTION outbox.lag(int, bigint, bigint) IS
    'committed events behind a position: counted up to ten thousand, beyond that estimated from the sequence; and the oldest occurred_at of those counted';

-- apart from the view, whose plan it would make look expensive
CREATE OR REPLACE FUNCTION outbox.restored_lag(sink_id int) RETURNS bigint
    LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SECURITY DEFINER AS $$
    SELECT count(*) FROM outbox.stored_event e
     CROSS JOIN LATERAL outbox.locate(restored_lag.sink_id, e.anchor, e.xid, e.seq, 0) l
     WHERE e.anchor <> outbox.anchor() AND l.ms IS NULL
$$;
COMMENT ON FUNCTION outbox.restored_lag(int) IS
    'events that came with a dump and are in no tick before outbox.resume()';

CREATE OR REPLACE FUNCTION outbox.redis_url() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_redis_url';
COMMENT ON FUNCTION outbox.redis_url() IS 'outbox.redis_url with the password masked';

CREATE OR REPLACE VIEW outbox.sink AS
    SELECT d.id, d.name, d.uuid, COALESCE(d.url, outbox.redis_url()) AS url, d.paused,
           d.anchor <> outbox.anchor() AS restored, d.created_at,
           f.topics, f.event_types, d.stream, d.start_ms, d.start_n, f.transform, d.trimming, d.max_length, d.max_age, d.confirm
    FROM outbox.sink_definition d
    LEFT JOIN LATERAL (SELECT topics, event_types, transform FROM outbox.sink_filter
                        WHERE sink_id = d.id ORDER BY from_ms DESC LIMIT 1) f ON true
    UNION ALL
    SELECT 1, 'default', NULL, outbox.redis_url(), false, false, NULL, NULL, NULL, 'outbox:{%t}', 0, 0, NULL, 'off', NULL, NULL, 'memory'
    WHERE NOT EXISTS (SELECT FROM outbox.sink_definition WHERE id = 1);
COMMENT ON VIEW outbox.sink IS 'the configured destinations; the sink "default" is always there';
COMMENT ON COLUMN outbox.sink.topics IS 'patterns of the topics that it takes; null: all';
COMMENT ON COLUMN outbox.sink.event_types IS 'patterns of the event types that it takes; null: all';
COMMENT ON COLUMN outbox.sink.stream IS 'what its streams are called; %t stands for the topic';
COMMENT ON COLUMN outbox.sink.start_ms IS 'with start_n: the first position that it could have; events before are none of its own';
COMMENT ON COLUMN outbox.sink.transform IS 'the function that makes its payloads, or withholds an event; null: payloads are as they were emitted';
COMMENT ON COLUMN outbox.sink.trimming IS
    'off: its streams are never trimmed; consumed: what every group has acknowledged is; limits: what exceeds max_length or max_age is, read or not';
COMMENT ON COLUMN outbox.sink.max_length IS 'entries that are kept in each stream; null: no limit';
COMMENT ON COLUMN outbox.sink.max_age IS 'how long entries are kept in each stream; null: no limit';
COMMENT ON COLUMN outbox.sink.confirm IS
    'how safe an entry must be before it counts as published: memory, replicas(n) or fsync';
COMMENT ON COLUMN outbox.sink.uuid IS 'identity of the sink in Redis; given with the first event';
COMMENT ON COLUMN outbox.sink.paused IS 'true after outbox.pause(): events are kept and not sent';
COMMENT ON COLUMN outbox.sink.restored IS
    'true when this database came from a dump or an upgrade and outbox.resume() has not yet said that it is the real one';

-- how far each sink is known to be: the worker's own word, or what it wrote down last
CREATE OR REPLACE VIEW outbox.sink_cursor AS
    SELECT s.id AS sink_id,
           COALESCE(CASE WHEN w.cursor_ms > 0 THEN w.cursor_ms END, c.ms, 0) AS ms,
           COALESCE(CASE WHEN w.cursor_ms > 0 THEN w.cursor_n END, c.n, -1) AS n,
           COALESCE(w.confirmed_at, c.recorded_at) AS confirmed_at,
           COALESCE(w.tick_ms, 0) AS tick_ms,
           COALESCE(w.passed_ms, 0) AS passed_ms
    FROM outbox.sink s
    LEFT JOIN outbox.worker_state() w ON w.sink_id = s.id
    LEFT JOIN LATERAL (
        SELECT ms, n, recorded_at FROM (
            SELECT ms, n, recorded_at FROM outbox.checkpoint WHERE sink_id = s.id
            UNION ALL
            (SELECT cursor_ms, cursor_n, pg_catalog.to_timestamp(ms / 1000.0)
               FROM outbox.tick WHERE sink_id = s.id ORDER BY ms DESC LIMIT 1)) known
        ORDER BY ms DESC, n DESC LIMIT 1) c ON true;
COMMENT ON VIEW outbox.sink_cursor IS 'the last position each sink has confirmed';

CREATE OR REPLACE VIEW outbox.sink_event AS
    SELECT k.name AS sink, e.event_id, e.event_type, t.topic, e.aggregate_type, e.aggregate_id, e.version, e.occurred_at,
           e.headers::pg_catalog.json AS headers, e.payload::pg_catalog.json AS payload,
           st.status,
           CASE WHEN st.status <> 'filtered' THEN pg_catalog.replace(k.stream, '%t', t.topic) END AS stream,
           CASE WHEN at.ms IS NOT NULL AND st.status <> 'filtered' THEN at.ms || '-' || at.n END AS position,
           CASE st.status WHEN 'dead_letter' THEN d.attempts WHEN 'failed' THEN s.attempts ELSE 0 END AS attempts,
           CASE st.status WHEN 'dead_letter' THEN d.error WHEN 'failed' THEN s.last_error END AS last_error,
           CASE WHEN st.status = 'published' THEN COALESCE(
               (SELECT pg_catalog.to_timestamp(k.ms / 1000.0) FROM outbox.tick k
                 WHERE k.sink_id = c.sink_id AND k.ms > l.ms AND (k.cursor_ms, k.cursor_n) >= (l.ms, l.n)
                 ORDER BY k.ms LIMIT 1), c.confirmed_at) END AS published_at,
           e.seq, e.xid, k.id AS sink_id
    FROM outbox.stored_event e
    CROSS JOIN LATERAL (SELECT COALESCE(e.topic, pg_catalog.split_part(e.event_type, '.', 1)) AS topic) t
    CROSS JOIN (outbox.sink_cursor c JOIN outbox.sink k ON k.id = c.sink_id)
    CROSS JOIN LATERAL outbox.locate(c.sink_id, e.anchor, e.xid, e.seq, k.start_ms) l
    LEFT JOIN outbox.placed p ON p.sink_id = c.sink_id AND p.event_id = e.event_id AND p.seq = e.seq
    LEFT JOIN LATERAL (SELECT m.to_ms FROM outbox.move m
                        WHERE m.sink_id = c.sink_id AND m.ms = l.ms AND m.topic = t.topic AND l.n BETWEEN m.n AND m.upto_n
                        ORDER BY m.to_ms DESC LIMIT 1) m ON true
    CROSS JOIN LATERAL (SELECT COALESCE(p.ms, m.to_ms, l.ms) AS ms, COALESCE(p.n, l.n) AS n) at
    LEFT JOIN outbox.dead_letter d ON d.sink_id = c.sink_id AND d.event_id = e.event_id AND d.seq = e.seq
    LEFT JOIN outbox.settled_letter g ON g.sink_id = c.sink_id AND g.event_id = e.event_id AND g.seq = e.seq
    LEFT JOIN outbox.stream s ON s.sink_id = c.sink_id AND s.topic = t.topic AND s.held_ms IS NOT NULL
    CROSS JOIN LATERAL (SELECT CASE
               WHEN d.event_id IS NOT NULL THEN 'dead_letter'
               WHEN g.event_id IS NOT NULL THEN g.outcome
               WHEN p.event_id IS NOT NULL THEN 'published'
               WHEN (l.ms, COALESCE(l.n, -1)) < (k.start_ms, k.start_n) THEN 'filtered'
               WHEN NOT outbox.passes(c.sink_id, l.ms, e.event_id, e.event_type, t.topic, e.aggregate_type, e.aggregate_id, e.version,
                                      e.occurred_at, e.headers, e.payload, e.sink_id) THEN 'filtered'
               WHEN l.ms IS NULL THEN 'pending'
               WHEN (l.ms, l.n) > (c.ms, c.n) THEN CASE WHEN l.ms <= c.tick_ms THEN 'processing' ELSE 'pending' END
               WHEN (l.ms, l.n) >= (s.held_ms, s.held_n) THEN 'failed'
               ELSE 'published' END AS status) st
    -- an event that was redriven has another row, with its new place
    WHERE (e.sink_id IS NULL OR e.sink_id = c.sink_id) AND g.outcome IS DISTINCT FROM 'redriven';
COMMENT ON VIEW outbox.sink_event IS 'one row for each sink and retained event, with what became of it there; one more for each time that outbox.replay() appended it again';
COMMENT ON COLUMN outbox.sink_event.status IS
    'pending, processing (in the batch being sent), published, failed (being retried), dead_letter, discarded, or filtered: not for this sink, as its filters, its transform or its start say';
COMMENT ON COLUMN outbox.sink_event.position IS 'its entry ID in the stream; null until the event is in a tick';
COMMENT ON COLUMN outbox.sink_event.published_at IS 'when the sink was first known to have confirmed it';

CREATE OR REPLACE VIEW outbox.event AS
    SELECT event_id, event_type, topic, aggregate_type, aggregate_id, version, occurred_at, headers, payload, status, stream,
           position, attempts, last_error, published_at, seq, xid
    FROM outbox.sink_event WHERE sink_id = 1;
COMMENT ON VIEW outbox.event IS 'one row for each retained event, with what became of it in the sink "default"; for other sinks see outbox.sink_event';
COMMENT ON COLUMN outbox.event.status IS
    'pending, processing (in the batch being sent), published, failed (being retried), dead_letter, discarded, or filtered: not for this sink';
COMMENT ON COLUMN outbox.event.position IS 'its entry ID in the stream; null until the event is in a tick';
COMMENT ON COLUMN outbox.event.published_at IS 'when the sink was first known to have confirmed it';
