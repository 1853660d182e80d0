-- outbox: the transactional outbox inside PostgreSQL. This file is the head of the install script; it knows nothing of Redis.
-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION outbox" to load this file. \quit

-- roles

-- outbox_worker owns everything and is nobody's login; the others are granted to people and services.
-- Roles belong to the cluster, so another database may have made them already.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['outbox_worker', 'outbox_emitter', 'outbox_reader', 'outbox_admin'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) wanted) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
        ELSIF (SELECT rolsuper OR rolbypassrls OR rolcreaterole FROM pg_catalog.pg_roles
                WHERE rolname OPERATOR(pg_catalog.=) wanted) THEN
            RAISE EXCEPTION 'role "%" has more privileges than outbox may give it', wanted
                USING ERRCODE = 'invalid_grant_operation',
                      HINT = 'Rename that role, or take SUPERUSER, BYPASSRLS and CREATEROLE from it.';
        END IF;
    END LOOP;
    -- it owns all events: nobody may log in as it or act for it, and it may not act for anybody
    IF (SELECT rolcanlogin OR rolreplication OR rolcreatedb FROM pg_catalog.pg_roles
         WHERE rolname OPERATOR(pg_catalog.=) 'outbox_worker')
       OR EXISTS (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r
                    ON r.rolname OPERATOR(pg_catalog.=) 'outbox_worker'
                   AND (m.member OPERATOR(pg_catalog.=) r.oid OR m.roleid OPERATOR(pg_catalog.=) r.oid)) THEN
        RAISE EXCEPTION 'role "outbox_worker" has more privileges than outbox may give it'
            USING ERRCODE = 'invalid_grant_operation',
                  HINT = 'Take LOGIN, REPLICATION, CREATEDB and every membership from it, in both directions.';
    END IF;
END
$$;

CREATE SCHEMA outbox;
COMMENT ON SCHEMA outbox IS 'transactional outbox: events committed here are appended to Redis Streams, exactly once and in order';

-- storage: a ring of partitions for events, and one beside it for ticks

CREATE SEQUENCE outbox.event_seq AS bigint CACHE 1;
COMMENT ON SEQUENCE outbox.event_seq IS 'order of the events within one tick';

-- generation g lives in partition g % 8; without a row the generation is 0
CREATE TABLE outbox.ring (
    generation bigint PRIMARY KEY,
    started_at timestamptz NOT NULL
);
COMMENT ON TABLE outbox.ring IS 'when each generation of the retention ring became the one that is written to';

DO $$
DECLARE
    i int;
BEGIN
    FOR i IN 0..7 LOOP
        -- fixed-width columns first: no byte is lost to alignment
        EXECUTE pg_catalog.format($sql$
            CREATE TABLE outbox.event_%1$s (
                seq bigint NOT NULL,
                xid xid8 NOT NULL,
                occurred_at timestamptz NOT NULL,
                event_id uuid NOT NULL,
                anchor int NOT NULL,
                version int NOT NULL,
                event_type text NOT NULL,
                topic text,
                aggregate_type text,
                aggregate_id text,
                headers text,
                payload text NOT NULL
            );
            CREATE INDEX event_%1$s_xid_seq ON outbox.event_%1$s (xid, seq);
            COMMENT ON TABLE outbox.event_%1$s IS 'a partition of the retained events; read outbox.event instead';
            CREATE TABLE outbox.tick_%1$s (
                sink_id int NOT NULL,
                anchor int NOT NULL,
                ms bigint NOT NULL,
                seq bigint NOT NULL,
                cursor_ms bigint NOT NULL,
                cursor_n bigint NOT NULL,
                snapshot pg_snapshot NOT NULL
            );
            CREATE UNIQUE INDEX tick_%1$s_sink_ms ON outbox.tick_%1$s (sink_id, ms);
            COMMENT ON TABLE outbox.tick_%1$s IS 'a partition of the ticks: the recorded batch boundaries';
        $sql$, i);
        PERFORM pg_catalog.pg_extension_config_dump(pg_catalog.format('outbox.event_%s', i)::pg_catalog.regclass, '');
        PERFORM pg_catalog.pg_extension_config_dump(pg_catalog.format('outbox.tick_%s', i)::pg_catalog.regclass, '');
    END LOOP;
END
$$;

CREATE VIEW outbox.stored_event AS
    SELECT * FROM outbox.event_0 UNION ALL SELECT * FROM outbox.event_1
    UNION ALL SELECT * FROM outbox.event_2 UNION ALL SELECT * FROM outbox.event_3
    UNION ALL SELECT * FROM outbox.event_4 UNION ALL SELECT * FROM outbox.event_5
    UNION ALL SELECT * FROM outbox.event_6 UNION ALL SELECT * FROM outbox.event_7;
COMMENT ON VIEW outbox.stored_event IS 'the event partitions as one, as they are stored';

CREATE VIEW outbox.tick AS
    SELECT * FROM outbox.tick_0 UNION ALL SELECT * FROM outbox.tick_1
    UNION ALL SELECT * FROM outbox.tick_2 UNION ALL SELECT * FROM outbox.tick_3
    UNION ALL SELECT * FROM outbox.tick_4 UNION ALL SELECT * FROM outbox.tick_5
    UNION ALL SELECT * FROM outbox.tick_6 UNION ALL SELECT * FROM outbox.tick_7;
COMMENT ON VIEW outbox.tick IS
    'the recorded batch boundaries: a batch is what its tick''s snapshot sees and the one before (of the same anchor) does not';

-- what is known of each sink. Nothing is inserted here at install: a restored dump must find these tables empty

CREATE SEQUENCE outbox.sink_seq AS int MINVALUE 2 MAXVALUE 65000 CACHE 1;
COMMENT ON SEQUENCE outbox.sink_seq IS 'ids of sinks; none is given twice';

CREATE TABLE outbox.sink_definition (
    id int PRIMARY KEY,
    uuid uuid NOT NULL UNIQUE,
    name text NOT NULL UNIQUE,
    anchor int NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    take_over boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    url text,
    stream text NOT NULL DEFAULT 'outbox:{%t}',
    start_ms bigint NOT NULL DEFAULT 0,
    start_n bigint NOT NULL DEFAULT 0,
    used boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE outbox.sink_definition IS 'sinks that have been used or changed; read outbox.sink instead';
COMMENT ON COLUMN outbox.sink_definition.url IS 'null: outbox.redis_url';
COMMENT ON COLUMN outbox.sink_definition.start_ms IS 'with start_n: the first position that belongs to the sink';
COMMENT ON COLUMN outbox.sink_definition.used IS 'something may have been sent to it';

-- a batch that is sent again has to have the events that it had the first time, so a filter that has been changed is kept
CREATE TABLE outbox.sink_filter (
    sink_id int NOT NULL,
    from_ms bigint NOT NULL,
    topics text[],
    event_types text[],
    PRIMARY KEY (sink_id, from_ms)
);
COMMENT ON TABLE outbox.sink_filter IS 'what each sink takes, from which tick on; without a row it takes everything';

CREATE TABLE outbox.incarnation (
    sink_id int NOT NULL,
    incarnation text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (sink_id, incarnation)
);
COMMENT ON TABLE outbox.incarnation IS 'each start of a worker, recorded before it touches the sink';

CREATE TABLE outbox.checkpoint (
    sink_id int PRIMARY KEY,
    ms bigint NOT NULL,
    n bigint NOT NULL,
    recorded_at timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE outbox.checkpoint IS 'a position that each sink has confirmed; the worker may be further';

CREATE TABLE outbox.stream (
    sink_id int NOT NULL,
    topic text NOT NULL,
    ms bigint NOT NULL DEFAULT 0,
    n bigint NOT NULL DEFAULT 0,
    appended bigint NOT NULL DEFAULT 0,
    held_ms bigint,
    held_n bigint,
    tried_ms bigint,
    tried_n bigint,
    attempts int NOT NULL DEFAULT 0,
    retry_at timestamptz,
    failed_at timestamptz,
    last_error text,
    released bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (sink_id, topic)
) WITH (fillfactor = 50);
COMMENT ON TABLE outbox.stream IS 'last position known to be in each stream, and from where on a failing stream is held';

CREATE TABLE outbox.move (
    sink_id int NOT NULL,
    ms bigint NOT NULL,
    topic text NOT NULL,
    n bigint NOT NULL,
    upto_n bigint NOT NULL,
    to_ms bigint NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (sink_id, ms, topic, to_ms, n)
);
CREATE INDEX move_to ON outbox.move (sink_id, to_ms);
COMMENT ON TABLE outbox.move IS
    'events of a batch, n to upto_n, appended at <to_ms>-<n> because somebody else owns their position';

CREATE TABLE outbox.placed (
    sink_id int NOT NULL,
    event_id uuid NOT NULL,
    topic text NOT NULL,
    ms bigint NOT NULL,
    n bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (sink_id, event_id, seq)
);
CREATE INDEX placed_at ON outbox.placed (sink_id, ms, n);
COMMENT ON TABLE outbox.placed IS 'events found in a stream, appended by a server that this one was restored or promoted from';

CREATE TABLE outbox.dead_letter (
    sink_id int NOT NULL,
    event_id uuid NOT NULL,
    topic text NOT NULL,
    event_type text NOT NULL,
    aggregate_type text,
    aggregate_id text,
    version int NOT NULL,
    occurred_at timestamptz NOT NULL,
    headers text,
    payload text NOT NULL,
    position text NOT NULL,
    attempts int NOT NULL,
    error text NOT NULL,
    failed_at timestamptz NOT NULL,
    dead_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    seq bigint NOT NULL,
    PRIMARY KEY (sink_id, event_id, seq)
);
COMMENT ON TABLE outbox.dead_letter IS 'events that could not be appended, with what led there';
COMMENT ON COLUMN outbox.dead_letter.position IS 'where the event would have been in its stream';
COMMENT ON COLUMN outbox.dead_letter.attempts IS 'how often it was tried';
COMMENT ON COLUMN outbox.dead_letter.error IS 'what the last attempt was answered';
COMMENT ON COLUMN outbox.dead_letter.failed_at IS 'when the first attempt failed';
COMMENT ON COLUMN outbox.dead_letter.dead_at IS 'when it was given up';

SELECT pg_catalog.pg_extension_config_dump('outbox.event_seq', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.ring', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.sink_definition', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.sink_seq', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.sink_filter', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.incarnation', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.checkpoint', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.stream', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.move', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.placed', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.dead_letter', '');

-- emitting

CREATE FUNCTION outbox.emit(event_type text, payload text, aggregate_id text DEFAULT NULL,
        aggregate_type text DEFAULT NULL, version int DEFAULT 1, headers jsonb DEFAULT NULL,
        topic text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL)
    RETURNS uuid LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_emit_text';
COMMENT ON FUNCTION outbox.emit(text, text, text, text, int, jsonb, text, timestamptz, uuid) IS
    'record an event in this transaction, to be published if and only if it commits; returns its id';

CREATE FUNCTION outbox.emit(event_type text, payload json, aggregate_id text DEFAULT NULL,
        aggregate_type text DEFAULT NULL, version int DEFAULT 1, headers jsonb DEFAULT NULL,
        topic text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL)
    RETURNS uuid LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_emit_json';
COMMENT ON FUNCTION outbox.emit(text, json, text, text, int, jsonb, text, timestamptz, uuid) IS
    'record an event in this transaction, to be published if and only if it commits; returns its id';

CREATE FUNCTION outbox.emit(event_type text, payload jsonb, aggregate_id text DEFAULT NULL,
        aggregate_type text DEFAULT NULL, version int DEFAULT 1, headers jsonb DEFAULT NULL,
        topic text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL)
    RETURNS uuid LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_emit_jsonb';
COMMENT ON FUNCTION outbox.emit(text, jsonb, text, text, int, jsonb, text, timestamptz, uuid) IS
    'record an event in this transaction, to be published if and only if it commits; returns its id';

-- looking

CREATE FUNCTION outbox.anchor() RETURNS int
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_anchor';
COMMENT ON FUNCTION outbox.anchor() IS
    'identifies this cluster and database; events and ticks that carry another one came with a restored dump';

CREATE FUNCTION outbox.worker_state(OUT sink_id int, OUT pid int, OUT state text, OUT since timestamptz,
        OUT cursor_ms bigint, OUT cursor_n bigint, OUT tick_ms bigint, OUT passed_ms bigint, OUT confirmed_at timestamptz,
        OUT published bigint, OUT batches bigint, OUT errors bigint, OUT duplicates_rejected bigint,
        OUT healed bigint, OUT throughput float8, OUT last_error text, OUT last_error_at timestamptz,
        OUT held_back_by text)
    RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'outbox_worker_state';
COMMENT ON FUNCTION outbox.worker_state() IS 'what the workers of this database say of themselves, from shared memory';

CREATE FUNCTION outbox.locate(sink_id int, anchor int, xid xid8, seq bigint, start_ms bigint, OUT ms bigint, OUT n bigint)
    LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_locate';
COMMENT ON FUNCTION outbox.locate(int, int, xid8, bigint, bigint) IS
    'the tick that an event belongs to and its index in that batch, which is null in a tick before the sink''s start; nulls when no tick has been recorded for it yet';

CREATE FUNCTION outbox.takes(sink_id int, ms bigint, event_type text, topic text) RETURNS boolean
    LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_takes';
COMMENT ON FUNCTION outbox.takes(int, bigint, text, text) IS
    'whether the filters of a sink take such an event of that tick; null: of one to come';

CREATE FUNCTION outbox.lag(sink_id int, ms bigint, n bigint, OUT events bigint, OUT oldest timestamptz)
    LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_lag';
COMMENT ON FUNCTION outbox.lag(int, bigint, bigint) IS
    'committed events behind a position: counted up to ten thousand, beyond that estimated from the sequence; and the oldest occurred_at of those counted';

-- apart from the view, whose plan it would make look expensive
CREATE FUNCTION outbox.restored_lag(sink_id int) RETURNS bigint
    LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SECURITY DEFINER AS $$
    SELECT count(*) FROM outbox.stored_event e
     CROSS JOIN LATERAL outbox.locate(restored_lag.sink_id, e.anchor, e.xid, e.seq, 0) l
     WHERE e.anchor <> outbox.anchor() AND l.ms IS NULL
$$;
COMMENT ON FUNCTION outbox.restored_lag(int) IS
    'events that came with a dump and are in no tick before outbox.resume()';

CREATE FUNCTION outbox.redis_url() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_redis_url';
COMMENT ON FUNCTION outbox.redis_url() IS 'outbox.redis_url with the password masked';

CREATE VIEW outbox.sink AS
    SELECT d.id, d.name, d.uuid, COALESCE(d.url, outbox.redis_url()) AS url, d.paused,
           d.anchor <> outbox.anchor() AS restored, d.created_at,
           f.topics, f.event_types, d.stream, d.start_ms, d.start_n
    FROM outbox.sink_definition d
    LEFT JOIN LATERAL (SELECT topics, event_types FROM outbox.sink_filter
                        WHERE sink_id = d.id ORDER BY from_ms DESC LIMIT 1) f ON true
    UNION ALL
    SELECT 1, 'default', NULL, outbox.redis_url(), false, false, NULL, NULL, NULL, 'outbox:{%t}', 0, 0
    WHERE NOT EXISTS (SELECT FROM outbox.sink_definition WHERE id = 1);
COMMENT ON VIEW outbox.sink IS 'the configured destinations; the sink "default" is always there';
COMMENT ON COLUMN outbox.sink.topics IS 'patterns of the topics that it takes; null: all';
COMMENT ON COLUMN outbox.sink.event_types IS 'patterns of the event types that it takes; null: all';
COMMENT ON COLUMN outbox.sink.stream IS 'what its streams are called; %t stands for the topic';
COMMENT ON COLUMN outbox.sink.start_ms IS 'with start_n: the first position that it could have; events before are none of its own';
COMMENT ON COLUMN outbox.sink.uuid IS 'identity of the sink in Redis; given with the first event';
COMMENT ON COLUMN outbox.sink.paused IS 'true after outbox.pause(): events are kept and not sent';
COMMENT ON COLUMN outbox.sink.restored IS
    'true when this database came from a dump or an upgrade and outbox.resume() has not yet said that it is the real one';

-- how far each sink is known to be: the worker's own word, or what it wrote down last
CREATE VIEW outbox.sink_cursor AS
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

CREATE VIEW outbox.sink_event AS
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
    LEFT JOIN outbox.stream s ON s.sink_id = c.sink_id AND s.topic = t.topic AND s.held_ms IS NOT NULL
    CROSS JOIN LATERAL (SELECT CASE
               WHEN d.event_id IS NOT NULL THEN 'dead_letter'
               WHEN p.event_id IS NOT NULL THEN 'published'
               WHEN (l.ms, COALESCE(l.n, -1)) < (k.start_ms, k.start_n) THEN 'filtered'
               WHEN NOT outbox.takes(c.sink_id, l.ms, e.event_type, t.topic) THEN 'filtered'
               WHEN l.ms IS NULL THEN 'pending'
               WHEN (l.ms, l.n) > (c.ms, c.n) THEN CASE WHEN l.ms <= c.tick_ms THEN 'processing' ELSE 'pending' END
               WHEN (l.ms, l.n) >= (s.held_ms, s.held_n) THEN 'failed'
               ELSE 'published' END AS status) st;
COMMENT ON VIEW outbox.sink_event IS 'one row for each sink and retained event, with what became of it there';
COMMENT ON COLUMN outbox.sink_event.status IS
    'pending, processing (in the batch being sent), published, failed (being retried), dead_letter, or filtered: not for this sink, as its filters or its start say';
COMMENT ON COLUMN outbox.sink_event.position IS 'its entry ID in the stream; null until the event is in a tick';
COMMENT ON COLUMN outbox.sink_event.published_at IS 'when the sink was first known to have confirmed it';

CREATE VIEW outbox.event AS
    SELECT event_id, event_type, topic, aggregate_type, aggregate_id, version, occurred_at, headers, payload, status, stream,
           position, attempts, last_error, published_at, seq, xid
    FROM outbox.sink_event WHERE sink_id = 1;
COMMENT ON VIEW outbox.event IS 'one row for each retained event, with what became of it in the sink "default"; for other sinks see outbox.sink_event';
COMMENT ON COLUMN outbox.event.status IS
    'pending, processing (in the batch being sent), published, failed (being retried), dead_letter, or filtered: not for this sink';
COMMENT ON COLUMN outbox.event.position IS 'its entry ID in the stream; null until the event is in a tick';
COMMENT ON COLUMN outbox.event.published_at IS 'when the sink was first known to have confirmed it';

CREATE VIEW outbox.stat_sink AS
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
           w.held_back_by AS retention_held_back_by
    FROM outbox.sink s
    JOIN outbox.sink_cursor c ON c.sink_id = s.id
    LEFT JOIN outbox.worker_state() w ON w.sink_id = s.id
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
    'idle, connecting, streaming, healing, backing off, fenced, paused, paused (restored), disabled or no worker';
COMMENT ON COLUMN outbox.stat_sink.lag_events IS 'committed events that the sink has not confirmed; an estimate beyond ten thousand';
COMMENT ON COLUMN outbox.stat_sink.lag_seconds IS 'age of the oldest of them by its occurred_at, in seconds; 0 when there is none';
COMMENT ON COLUMN outbox.stat_sink.published IS 'events appended since the worker started';
COMMENT ON COLUMN outbox.stat_sink.throughput IS 'events a second over the last seconds of work';
COMMENT ON COLUMN outbox.stat_sink.duplicates_rejected IS 'entries sent again after a crash and found in the stream already';
COMMENT ON COLUMN outbox.stat_sink.healed IS 'entries that Redis had lost and that were appended again';
COMMENT ON COLUMN outbox.stat_sink.held_streams IS 'streams that refuse entries and are being retried';
COMMENT ON COLUMN outbox.stat_sink.retention_held_back_by IS 'why old events could not be dropped the last time they were due; null when nothing holds them';

-- operating

CREATE FUNCTION outbox.wake(reload boolean DEFAULT false) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_wake';
COMMENT ON FUNCTION outbox.wake(boolean) IS 'wake this database''s workers when the transaction commits; with reload they look at their sinks again';

CREATE FUNCTION outbox.flush("timeout" interval DEFAULT '30 seconds', sink text DEFAULT 'default') RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_flush';
COMMENT ON FUNCTION outbox.flush(interval, text) IS
    'wait until everything committed before the call is published in a sink, or with null in all of them; false when the time is over first';

CREATE FUNCTION outbox.compare(sink text, since timestamptz, until timestamptz,
        OUT finding text, OUT topic text, OUT "position" text, OUT event_id uuid, OUT belongs_topic text,
        OUT belongs_position text, OUT entries bigint, OUT detail text)
    RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_compare';
COMMENT ON FUNCTION outbox.compare(text, timestamptz, timestamptz) IS
    'what outbox.verify() finds, before an event that is missing in one place is recognised in another';

-- An entry that nothing explains may be that of an event that is missing where it should be.
CREATE FUNCTION outbox.verify(sink text DEFAULT 'default', since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL)
    RETURNS TABLE (finding text, stream text, expected text, found text, event_id uuid, entries bigint, detail text)
    LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
    WITH compared AS MATERIALIZED (
        SELECT c.*, row_number() OVER (PARTITION BY c.finding, c.event_id ORDER BY c.ordinality) AS nth
          FROM outbox.compare(verify.sink, verify.since, verify.until) WITH ORDINALITY c)
    SELECT CASE WHEN e.finding IS NULL THEN m.finding WHEN m.finding IS NULL THEN 'extra' ELSE 'misplaced' END,
           replace(k.stream, '%t', COALESCE(m.topic, e.topic)),
           m."position", e."position", COALESCE(m.event_id, e.event_id), COALESCE(m.entries, e.entries),
           CASE WHEN m.finding IS NULL AND e.belongs_position IS NOT NULL
                    THEN e.detail || ': ' || e.belongs_position || ' in ' || replace(k.stream, '%t', e.belongs_topic)
                WHEN e.finding IS NULL THEN m.detail
                WHEN m.finding IS NULL THEN e.detail
                WHEN m.topic <> e.topic THEN 'the event is in ' || replace(k.stream, '%t', e.topic) END
      FROM (SELECT * FROM compared c WHERE c.finding <> 'extra') m
      FULL JOIN (SELECT * FROM compared c WHERE c.finding = 'extra') e ON m.event_id = e.event_id AND m.nth = e.nth
     CROSS JOIN (SELECT s.stream FROM outbox.sink s WHERE s.name = verify.sink) k
     ORDER BY COALESCE(m.topic, e.topic) COLLATE "C",
              split_part(COALESCE(m."position", e."position"), '-', 1)::numeric,
              split_part(COALESCE(m."position", e."position"), '-', 2)::numeric
$$;
COMMENT ON FUNCTION outbox.verify(text, timestamptz, timestamptz) IS
    'compare what was committed and confirmed with what the streams hold; a row for each missing, misplaced or extra entry, and for what was trimmed. No rows: they are equal';

CREATE FUNCTION outbox.verify_state(OUT sink_id int, OUT pid int, OUT worker_pid int, OUT started_at timestamptz,
        OUT ticks_total bigint, OUT ticks bigint, OUT upto_ms bigint, OUT events bigint, OUT entries bigint,
        OUT findings bigint)
    RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'outbox_verify_state';
COMMENT ON FUNCTION outbox.verify_state() IS 'how far each outbox.verify() of this database is, from shared memory';

CREATE VIEW outbox.stat_verify AS
    SELECT s.name AS sink, v.pid, v.worker_pid, v.started_at, v.ticks_total, v.ticks,
           CASE WHEN v.upto_ms > 0 THEN pg_catalog.to_timestamp(v.upto_ms / 1000.0) END AS upto,
           v.events, v.entries, v.findings
    FROM outbox.verify_state() v
    LEFT JOIN outbox.sink s ON s.id = v.sink_id;
COMMENT ON VIEW outbox.stat_verify IS 'how far each outbox.verify() is that runs in this database';
COMMENT ON COLUMN outbox.stat_verify.pid IS 'the backend that waits for it; to cancel that ends it';
COMMENT ON COLUMN outbox.stat_verify.ticks_total IS 'ticks that will be compared';
COMMENT ON COLUMN outbox.stat_verify.ticks IS 'ticks that have been, as far as the database''s side is concerned';
COMMENT ON COLUMN outbox.stat_verify.upto IS 'the time of the last tick whose entries have been compared';
COMMENT ON COLUMN outbox.stat_verify.findings IS 'found so far, before missing events are recognised elsewhere';

-- Names and types are those of Prometheus' text format. A name of a sink needs no escaping, that of a database does.
CREATE FUNCTION outbox.metrics() RETURNS text
    LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
    WITH database AS (
        SELECT E'database="' || replace(replace(replace(current_database(), E'\\', E'\\\\'), '"', E'\\"'), E'\n', E'\\n') || '"' AS label),
    sink AS MATERIALIZED (
        SELECT d.label || ',sink="' || s.sink || '"' AS label, s.* FROM outbox.stat_sink s CROSS JOIN database d),
    storage AS (
        SELECT d.label, sum(pg_total_relation_size(c.oid)) AS bytes
          FROM pg_class c CROSS JOIN database d
         WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^(event|tick)_[0-7]$'
         GROUP BY d.label),
    sample AS (
        SELECT v.* FROM sink s CROSS JOIN LATERAL (VALUES
            (1, 'outbox_up', 'gauge', 'whether the sink is served: 0 while it is paused, fenced, backing off or has no worker',
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
        SELECT 13, 'outbox_storage_bytes', 'gauge', 'what stored events and ticks take on disk, with their indexes', label, bytes FROM storage),
    family AS (
        SELECT n, '# HELP ' || name || ' ' || help || E'\n# TYPE ' || name || ' ' || type || E'\n'
                  || string_agg(name || '{' || label || '} ' || value || E'\n', '' ORDER BY label) AS text
          FROM sample WHERE value IS NOT NULL GROUP BY n, name, help, type)
    SELECT string_agg(text, '' ORDER BY n) FROM family
$$;
COMMENT ON FUNCTION outbox.metrics() IS 'what outbox.stat_sink says, in the text format of Prometheus';

-- the default sink has no row until something must be remembered of it
CREATE FUNCTION outbox.keep_default_sink() RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO outbox.sink_definition (id, uuid, name, anchor)
    SELECT 1, gen_random_uuid(), 'default', outbox.anchor()
    ON CONFLICT DO NOTHING
$$;
COMMENT ON FUNCTION outbox.keep_default_sink() IS 'give the sink "default" a row of its own';

CREATE FUNCTION outbox.pause(sink text DEFAULT 'default') RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF sink = 'default' THEN
        PERFORM outbox.keep_default_sink();
    END IF;
    UPDATE outbox.sink_definition SET paused = true WHERE name = sink;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'sink "%" does not exist', sink
            USING ERRCODE = 'undefined_object', HINT = 'The sinks are listed in outbox.sink.';
    END IF;
    PERFORM outbox.wake(true);
END
$$;
COMMENT ON FUNCTION outbox.pause(text) IS 'stop sending to a sink; events are kept and ticks go on';

CREATE FUNCTION outbox.resume(sink text DEFAULT 'default', take_over boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF sink = 'default' THEN
        PERFORM outbox.keep_default_sink();
    END IF;
    UPDATE outbox.sink_definition
       SET paused = false, anchor = outbox.anchor(), take_over = resume.take_over
     WHERE name = sink;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'sink "%" does not exist', sink
            USING ERRCODE = 'undefined_object', HINT = 'The sinks are listed in outbox.sink.';
    END IF;
    PERFORM outbox.wake(true);
END
$$;
COMMENT ON FUNCTION outbox.resume(text, boolean) IS
    'send again after pause(), or say that this restored database is the real one; take_over displaces another server that holds the sink';

-- sinks

CREATE FUNCTION outbox.check_name(name text) RETURNS void
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_check_name';
COMMENT ON FUNCTION outbox.check_name(text) IS 'an error unless a sink may be called so';

CREATE FUNCTION outbox.redis_endpoint(url text) RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_redis_endpoint';
COMMENT ON FUNCTION outbox.redis_endpoint(text) IS 'the server and database that a URL leads to, or with null outbox.redis_url';

CREATE FUNCTION outbox.check_url(url text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_check_url';
COMMENT ON FUNCTION outbox.check_url(text) IS 'an error unless a sink may have this URL';

CREATE FUNCTION outbox.check_stream(stream text) RETURNS void
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_check_stream';
COMMENT ON FUNCTION outbox.check_stream(text) IS 'an error unless it is a template for names of streams';

CREATE FUNCTION outbox.streams_overlap(one text, other text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_streams_overlap';
COMMENT ON FUNCTION outbox.streams_overlap(text, text) IS 'whether two templates can name the same stream';

CREATE FUNCTION outbox.check_patterns(name text, patterns text[]) RETURNS void
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_check_patterns';
COMMENT ON FUNCTION outbox.check_patterns(text, text[]) IS 'an error unless these are patterns of topics or event_types';

CREATE FUNCTION outbox.stop_worker(sink_id int) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_stop_worker';
COMMENT ON FUNCTION outbox.stop_worker(int) IS 'end the worker of a sink until this transaction is over';

-- With an older snapshot, ticks would be missed that workers have recorded since.
CREATE FUNCTION outbox.check_isolation() RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'sinks cannot be changed in a transaction of isolation level %', current_setting('transaction_isolation')
            USING ERRCODE = 'active_sql_transaction', HINT = 'Use a transaction of isolation level READ COMMITTED.';
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.check_isolation() IS 'an error unless each statement of this transaction sees what was committed before it';

-- Two sinks that write to the same streams would disturb each other's order.
CREATE FUNCTION outbox.check_separate(sink_id int, url text, stream text) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    endpoint text := outbox.redis_endpoint(url);
    other text;
BEGIN
    SELECT o.name INTO other
      FROM (SELECT d.id, d.name, d.url, d.stream FROM outbox.sink_definition d
            UNION ALL SELECT 1, 'default', NULL, 'outbox:{%t}'
             WHERE NOT EXISTS (SELECT FROM outbox.sink_definition WHERE id = 1)) o
     WHERE o.id <> check_separate.sink_id AND outbox.streams_overlap(o.stream, check_separate.stream)
       AND outbox.redis_endpoint(o.url) = endpoint
     ORDER BY o.id LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the sink could have the same streams as sink "%"', other
            USING ERRCODE = 'invalid_parameter_value',
                  DETAIL = format('Both append to Redis at "%s", and their stream templates do not keep them apart.', endpoint),
                  HINT = 'Use another stream template, such as ''audit:{%t}'', or another database of that Redis.';
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.check_separate(int, text, text) IS 'an error where another sink can have the same streams';

-- The history of a sink is cut into batches at the ticks of the sink "default", which it gets copies of: so each batch is as
-- small as it was then, and has its events in the same order and at the same positions. Behind the last of these ticks the sink
-- goes on with ticks of its own.
CREATE FUNCTION outbox.create_sink(name text, url text, topics text[] DEFAULT NULL, event_types text[] DEFAULT NULL,
        stream text DEFAULT 'outbox:{%t}', start text DEFAULT 'now') RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    new_id int;
    now_ms bigint;
    wanted_ms bigint;
    wanted_n bigint := 0;
    candidate record;
    oldest_ms bigint;     -- the first tick of this database
    oldest_partition int;
    dropped boolean := false;
    base_ms bigint;       -- what the tick of that time sees is none of the sink's
    copy_ms bigint;       -- ticks from here on are copied
    first_n bigint := 0;
    before record;
    own xid8;
    snapshot pg_snapshot;
BEGIN
    PERFORM outbox.check_name(create_sink.name);
    IF url IS NULL OR start IS NULL THEN
        RAISE EXCEPTION '% must not be null', CASE WHEN url IS NULL THEN 'url' ELSE 'start' END
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM outbox.check_url(url);
    PERFORM outbox.check_stream(create_sink.stream);
    PERFORM outbox.check_patterns('topics', create_sink.topics);
    PERFORM outbox.check_patterns('event_types', create_sink.event_types);
    PERFORM outbox.check_isolation();

    -- Retention can drop nothing from here on, and each statement sees what was committed before it.
    LOCK TABLE outbox.sink_definition IN SHARE ROW EXCLUSIVE MODE;
    LOCK TABLE outbox.tick_0, outbox.tick_1, outbox.tick_2, outbox.tick_3, outbox.tick_4, outbox.tick_5, outbox.tick_6,
        outbox.tick_7 IN ROW EXCLUSIVE MODE;
    PERFORM outbox.keep_default_sink();
    IF EXISTS (SELECT FROM outbox.sink_definition d WHERE d.name = create_sink.name) THEN
        RAISE EXCEPTION 'sink "%" already exists', create_sink.name USING ERRCODE = 'duplicate_object';
    END IF;
    IF EXISTS (SELECT FROM outbox.sink_definition d WHERE d.id = 1 AND d.anchor <> outbox.anchor()) THEN
        RAISE EXCEPTION 'a sink cannot be created in a database that was restored from a dump, copied or upgraded'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'If it is the real one, run SELECT outbox.resume() first.';
    END IF;
    PERFORM outbox.check_separate(0, url, create_sink.stream);

    -- where it starts
    now_ms := floor(extract(epoch FROM clock_timestamp()) * 1000);
    FOR i IN 0..7 LOOP
        EXECUTE format('SELECT t.ms, %1$s AS partition FROM outbox.tick_%1$s t WHERE t.sink_id = 1 AND t.anchor = outbox.anchor() '
                       'ORDER BY t.ms LIMIT 1', i) INTO candidate;
        IF candidate.ms < COALESCE(oldest_ms, candidate.ms + 1) THEN
            oldest_ms := candidate.ms;
            oldest_partition := candidate.partition;
        END IF;
    END LOOP;
    IF oldest_ms IS NOT NULL THEN
        -- retention has moved the last tick of what it dropped on to the partition behind
        SELECT r.started_at > to_timestamp(oldest_ms / 1000.0) INTO dropped FROM outbox.ring r
         WHERE r.generation > 0
           AND r.generation % 8 = oldest_partition
         ORDER BY r.generation DESC LIMIT 1;
        dropped := COALESCE(dropped, false);
    END IF;
    IF start = 'now' THEN
        SELECT greatest(now_ms, max(t.ms) + 1) INTO base_ms FROM outbox.tick t WHERE t.sink_id = 1;
        -- a transaction does not see itself as running, though it is
        snapshot := pg_current_snapshot();
        own := pg_current_xact_id();
        IF own < pg_snapshot_xmax(snapshot) THEN
            SELECT format('%s:%s:%s', least(pg_snapshot_xmin(snapshot), own), pg_snapshot_xmax(snapshot),
                          string_agg(x::text, ',' ORDER BY x))::pg_snapshot INTO snapshot
              FROM (SELECT pg_snapshot_xip(snapshot) UNION SELECT own) running(x);
        END IF;
    ELSIF start = 'beginning' THEN
        base_ms := CASE WHEN dropped THEN oldest_ms END;
    ELSIF start ~ '^[0-9]{1,18}-[0-9]{1,18}$' THEN
        wanted_ms := split_part(start, '-', 1);
        wanted_n := split_part(start, '-', 2);
        IF NOT EXISTS (SELECT FROM outbox.tick t WHERE t.sink_id = 1 AND t.ms = wanted_ms) THEN
            RAISE EXCEPTION 'no retained batch of sink "default" has position %', start
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'The positions are those in outbox.event. To begin with what is retained, use start => ''beginning''.';
        END IF;
        SELECT t.ms, t.snapshot INTO before FROM outbox.tick t
         WHERE t.sink_id = 1 AND t.ms < wanted_ms ORDER BY t.ms DESC LIMIT 1;
        IF dropped AND (before.ms IS NULL OR pg_snapshot_xmin(before.snapshot) <
               (SELECT pg_snapshot_xmax(t.snapshot) FROM outbox.tick t
                 WHERE t.sink_id = 1 AND t.anchor = outbox.anchor() AND t.ms > oldest_ms ORDER BY t.ms LIMIT 1)) THEN
            RAISE EXCEPTION 'the batch of position % is no longer retained as a whole', start
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'To begin with what is retained, use start => ''beginning''.';
        END IF;
        base_ms := before.ms;
        IF wanted_n > 0 THEN
            base_ms := wanted_ms - 1;
            first_n := wanted_n;
            copy_ms := COALESCE(before.ms, 0);
        END IF;
    ELSE
        BEGIN
            IF start::timestamptz > clock_timestamp() THEN
                RAISE EXCEPTION 'start must not be in the future' USING ERRCODE = 'invalid_parameter_value';
            END IF;
            wanted_ms := CASE WHEN start::timestamptz > '-infinity'
                              THEN floor(extract(epoch FROM start::timestamptz) * 1000) ELSE 0 END;
        EXCEPTION WHEN invalid_datetime_format OR datetime_field_overflow OR invalid_parameter_value THEN
            IF SQLERRM = 'start must not be in the future' THEN
                RAISE;
            END IF;
            RAISE EXCEPTION 'invalid start "%"', left(regexp_replace(start, '[^ -~]', '?', 'g'), 60)
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'Use ''now'', ''beginning'', a time, or a position of sink "default" such as ''1795273184228-2''.';
        END;
        -- a tick of that very millisecond may see what was committed later in it
        SELECT max(t.ms) INTO base_ms FROM outbox.tick t WHERE t.sink_id = 1 AND t.ms < wanted_ms;
        IF dropped AND (base_ms IS NULL OR base_ms < oldest_ms) THEN
            base_ms := oldest_ms;
            RAISE NOTICE 'sink "%" begins with what is retained, which is later than its start', create_sink.name;
        END IF;
    END IF;
    copy_ms := COALESCE(copy_ms, base_ms, 0);

    new_id := nextval('outbox.sink_seq');
    -- Of the ticks before, the last one in each partition comes along: retention and the views go by them.
    FOR i IN 0..7 LOOP
        EXECUTE format('INSERT INTO outbox.tick_%1$s (sink_id, anchor, ms, seq, cursor_ms, cursor_n, snapshot) '
                       'SELECT $1, t.anchor, t.ms, t.seq, 0, -1, t.snapshot FROM outbox.tick_%1$s t '
                       'WHERE t.sink_id = 1 AND (t.ms >= $2 OR t.ms IN (SELECT max(l.ms) FROM outbox.tick_%1$s l '
                       'WHERE l.sink_id = 1 GROUP BY l.anchor))', i) USING new_id, copy_ms;
    END LOOP;
    IF start = 'now' THEN
        EXECUTE format('INSERT INTO outbox.tick_%s (sink_id, anchor, ms, seq, cursor_ms, cursor_n, snapshot) '
                       'SELECT $1, outbox.anchor(), $2, COALESCE(pg_sequence_last_value(''outbox.event_seq''), 0), 0, -1, $3',
                       COALESCE((SELECT max(r.generation) FROM outbox.ring r), 0) % 8) USING new_id, base_ms, snapshot;
    END IF;
    INSERT INTO outbox.sink_definition (id, uuid, name, anchor, url, stream, start_ms, start_n)
    VALUES (new_id, gen_random_uuid(), create_sink.name, outbox.anchor(), create_sink.url, create_sink.stream,
            COALESCE(base_ms + 1, 0), first_n);
    IF base_ms IS NOT NULL THEN
        INSERT INTO outbox.checkpoint (sink_id, ms, n, recorded_at)
        VALUES (new_id, CASE WHEN first_n > 0 THEN base_ms + 1 ELSE base_ms END, greatest(first_n - 1, 0), clock_timestamp());
    END IF;
    IF create_sink.topics IS NOT NULL OR create_sink.event_types IS NOT NULL THEN
        INSERT INTO outbox.sink_filter (sink_id, from_ms, topics, event_types)
        VALUES (new_id, 0, create_sink.topics, create_sink.event_types);
    END IF;
    PERFORM outbox.wake(true);
END
$$;
COMMENT ON FUNCTION outbox.create_sink(text, text, text[], text[], text, text) IS
    'add a sink with a worker and a cursor of its own; start is now, beginning, a time or a position of sink "default"';

CREATE FUNCTION outbox.sink_id(sink text) RETURNS int
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_id int;
BEGIN
    IF sink IS NULL THEN
        RAISE EXCEPTION 'sink must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    SELECT d.id INTO found_id FROM outbox.sink_definition d WHERE d.name = sink;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'sink "%" does not exist', sink
            USING ERRCODE = 'undefined_object', HINT = 'The sinks are listed in outbox.sink.';
    END IF;
    RETURN found_id;
END
$$;
COMMENT ON FUNCTION outbox.sink_id(text) IS 'the id of a sink that has a row; an error where there is none';

-- The sink's worker is ended before and started after: no tick can fall between the old filter and the new one.
CREATE FUNCTION outbox.alter_sink(sink text, url text DEFAULT NULL, topics text[] DEFAULT NULL,
        event_types text[] DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    altered int;
    old record;
BEGIN
    IF alter_sink.url IS NOT NULL THEN
        PERFORM outbox.check_url(alter_sink.url);
    END IF;
    PERFORM outbox.check_patterns('topics', alter_sink.topics);
    PERFORM outbox.check_patterns('event_types', alter_sink.event_types);
    IF sink = 'default' THEN
        IF alter_sink.url IS NOT NULL THEN
            RAISE EXCEPTION 'the URL of sink "default" is a setting'
                USING ERRCODE = 'feature_not_supported', HINT = 'Set outbox.redis_url and reload the configuration.';
        END IF;
        PERFORM outbox.keep_default_sink();
    END IF;
    PERFORM outbox.check_isolation();
    LOCK TABLE outbox.sink_definition IN SHARE ROW EXCLUSIVE MODE;
    altered := outbox.sink_id(sink);
    PERFORM outbox.stop_worker(altered);
    IF alter_sink.url IS NOT NULL THEN
        PERFORM outbox.check_separate(altered, alter_sink.url, d.stream) FROM outbox.sink_definition d WHERE d.id = altered;
        UPDATE outbox.sink_definition SET url = alter_sink.url WHERE id = altered;
    END IF;
    IF alter_sink.topics IS NOT NULL OR alter_sink.event_types IS NOT NULL THEN
        SELECT f.topics, f.event_types INTO old FROM outbox.sink_filter f WHERE f.sink_id = altered ORDER BY f.from_ms DESC LIMIT 1;
        INSERT INTO outbox.sink_filter (sink_id, from_ms, topics, event_types)
        -- not before now: after a crash the newest tick may be in Redis' marker only
        SELECT altered, greatest(max(t.ms) + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), COALESCE(alter_sink.topics, old.topics),
               COALESCE(alter_sink.event_types, old.event_types)
          FROM outbox.tick t WHERE t.sink_id = altered
        ON CONFLICT (sink_id, from_ms) DO UPDATE SET topics = EXCLUDED.topics, event_types = EXCLUDED.event_types;
    END IF;
    PERFORM outbox.wake(true);
END
$$;
COMMENT ON FUNCTION outbox.alter_sink(text, text, text[], text[]) IS
    'give a sink another URL, or filters that count for events from now on; null leaves as it is, {*} takes everything';

CREATE FUNCTION outbox.drop_sink(sink text, discard_dead_letters boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    dropped int;
    letters bigint;
    key uuid;
BEGIN
    IF sink = 'default' THEN
        RAISE EXCEPTION 'sink "default" cannot be dropped'
            USING ERRCODE = 'feature_not_supported', HINT = 'It can be paused, and its filters can be altered.';
    END IF;
    PERFORM outbox.check_isolation();
    LOCK TABLE outbox.sink_definition IN SHARE ROW EXCLUSIVE MODE;
    dropped := outbox.sink_id(sink);
    PERFORM outbox.stop_worker(dropped);
    SELECT count(*) INTO letters FROM outbox.dead_letter d WHERE d.sink_id = dropped;
    IF letters > 0 AND discard_dead_letters IS NOT TRUE THEN
        RAISE EXCEPTION 'sink "%" has % dead letters', sink, letters
            USING ERRCODE = 'object_in_use',
                  HINT = 'They are in outbox.dead_letter. To drop them with it, use discard_dead_letters => true.';
    END IF;
    FOR i IN 0..7 LOOP
        EXECUTE format('DELETE FROM outbox.tick_%s WHERE sink_id = $1', i) USING dropped;
    END LOOP;
    DELETE FROM outbox.sink_filter WHERE sink_id = dropped;
    DELETE FROM outbox.incarnation WHERE sink_id = dropped;
    DELETE FROM outbox.checkpoint WHERE sink_id = dropped;
    DELETE FROM outbox.stream WHERE sink_id = dropped;
    DELETE FROM outbox.move WHERE sink_id = dropped;
    DELETE FROM outbox.placed WHERE sink_id = dropped;
    DELETE FROM outbox.dead_letter WHERE sink_id = dropped;
    DELETE FROM outbox.sink_definition WHERE id = dropped RETURNING uuid INTO key;
    RAISE NOTICE 'the streams of sink "%" stay in Redis as they are, and so does its key "outbox:sink:%"', sink, key;
    PERFORM outbox.wake(true);
END
$$;
COMMENT ON FUNCTION outbox.drop_sink(text, boolean) IS
    'end a sink: events that it has not published yet it never will, and what is known of it is deleted; its streams stay';

-- who may do what

DO $$
DECLARE
    object record;
BEGIN
    FOR object IN
        SELECT c.oid::pg_catalog.regclass AS name, c.relkind FROM pg_catalog.pg_class c
         WHERE c.relnamespace OPERATOR(pg_catalog.=) 'outbox'::pg_catalog.regnamespace
           AND c.relkind IN ('r', 'v', 'S')
    LOOP
        EXECUTE pg_catalog.format('ALTER %s %s OWNER TO outbox_worker',
            CASE object.relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW' ELSE 'SEQUENCE' END, object.name);
    END LOOP;
    FOR object IN
        SELECT p.oid::pg_catalog.regprocedure AS name FROM pg_catalog.pg_proc p
         WHERE p.pronamespace OPERATOR(pg_catalog.=) 'outbox'::pg_catalog.regnamespace
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', object.name);
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO outbox_worker', object.name);
    END LOOP;
END
$$;

ALTER FUNCTION outbox.keep_default_sink() OWNER TO outbox_worker;
ALTER FUNCTION outbox.restored_lag(int) OWNER TO outbox_worker;
ALTER FUNCTION outbox.create_sink(text, text, text[], text[], text, text) OWNER TO outbox_worker;
ALTER FUNCTION outbox.alter_sink(text, text, text[], text[]) OWNER TO outbox_worker;
ALTER FUNCTION outbox.drop_sink(text, boolean) OWNER TO outbox_worker;
ALTER FUNCTION outbox.pause(text) OWNER TO outbox_worker;
ALTER FUNCTION outbox.resume(text, boolean) OWNER TO outbox_worker;

GRANT USAGE ON SCHEMA outbox TO outbox_worker, outbox_emitter, outbox_reader, outbox_admin;

GRANT EXECUTE ON FUNCTION
    outbox.emit(text, text, text, text, int, jsonb, text, timestamptz, uuid),
    outbox.emit(text, json, text, text, int, jsonb, text, timestamptz, uuid),
    outbox.emit(text, jsonb, text, text, int, jsonb, text, timestamptz, uuid)
    TO outbox_emitter;
GRANT EXECUTE ON FUNCTION outbox.flush(interval, text) TO outbox_emitter, outbox_reader, outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.anchor(), outbox.worker_state(), outbox.redis_url(),
    outbox.locate(int, int, xid8, bigint, bigint), outbox.takes(int, bigint, text, text), outbox.lag(int, bigint, bigint),
    outbox.restored_lag(int), outbox.verify_state(), outbox.metrics() TO outbox_reader, outbox_admin;
GRANT SELECT ON outbox.event, outbox.sink_event, outbox.sink, outbox.sink_cursor, outbox.stat_sink, outbox.stat_verify, outbox.dead_letter,
    outbox.tick TO outbox_reader, outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.create_sink(text, text, text[], text[], text, text),
    outbox.alter_sink(text, text, text[], text[]), outbox.drop_sink(text, boolean) TO outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.pause(text), outbox.resume(text, boolean),
    outbox.compare(text, timestamptz, timestamptz), outbox.verify(text, timestamptz, timestamptz) TO outbox_admin;

-- last: the launcher starts this database's worker when this transaction commits
SELECT outbox.wake(true);
