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

CREATE TABLE outbox.sink_definition (
    id int PRIMARY KEY,
    uuid uuid NOT NULL UNIQUE,
    name text NOT NULL UNIQUE,
    anchor int NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    take_over boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE outbox.sink_definition IS 'sinks that have been used or changed; read outbox.sink instead';

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

CREATE FUNCTION outbox.locate(sink_id int, anchor int, xid xid8, seq bigint, OUT ms bigint, OUT n bigint)
    LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_locate';
COMMENT ON FUNCTION outbox.locate(int, int, xid8, bigint) IS
    'the tick that an event belongs to and its index in that batch; nulls when no tick has been recorded for it yet';

CREATE FUNCTION outbox.lag(sink_id int, ms bigint, n bigint, OUT events bigint, OUT oldest timestamptz)
    LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_lag';
COMMENT ON FUNCTION outbox.lag(int, bigint, bigint) IS
    'committed events behind a position: counted up to ten thousand, beyond that estimated from the sequence; and the oldest occurred_at of those counted';

-- apart from the view, whose plan it would make look expensive
CREATE FUNCTION outbox.restored_lag(sink_id int) RETURNS bigint
    LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SECURITY DEFINER AS $$
    SELECT count(*) FROM outbox.stored_event e
     CROSS JOIN LATERAL outbox.locate(restored_lag.sink_id, e.anchor, e.xid, e.seq) l
     WHERE e.anchor <> outbox.anchor() AND l.ms IS NULL
$$;
COMMENT ON FUNCTION outbox.restored_lag(int) IS
    'events that came with a dump and are in no tick before outbox.resume()';

CREATE FUNCTION outbox.redis_url() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_redis_url';
COMMENT ON FUNCTION outbox.redis_url() IS 'outbox.redis_url with the password masked';

CREATE VIEW outbox.sink AS
    SELECT d.id, d.name, d.uuid, outbox.redis_url() AS url, d.paused,
           d.anchor <> outbox.anchor() AS restored, d.created_at
    FROM outbox.sink_definition d
    UNION ALL
    SELECT 1, 'default', NULL, outbox.redis_url(), false, false, NULL
    WHERE NOT EXISTS (SELECT FROM outbox.sink_definition WHERE id = 1);
COMMENT ON VIEW outbox.sink IS 'the configured destinations; the sink "default" is always there';
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

CREATE VIEW outbox.event AS
    SELECT e.event_id, e.event_type, t.topic, e.aggregate_type, e.aggregate_id, e.version, e.occurred_at,
           e.headers::pg_catalog.json AS headers, e.payload::pg_catalog.json AS payload,
           st.status,
           'outbox:{' || t.topic || '}' AS stream,
           CASE WHEN at.ms IS NOT NULL THEN at.ms || '-' || at.n END AS position,
           CASE st.status WHEN 'dead_letter' THEN d.attempts WHEN 'failed' THEN s.attempts ELSE 0 END AS attempts,
           CASE st.status WHEN 'dead_letter' THEN d.error WHEN 'failed' THEN s.last_error END AS last_error,
           CASE WHEN st.status = 'published' THEN COALESCE(
               (SELECT pg_catalog.to_timestamp(k.ms / 1000.0) FROM outbox.tick k
                 WHERE k.sink_id = c.sink_id AND k.ms > l.ms AND (k.cursor_ms, k.cursor_n) >= (l.ms, l.n)
                 ORDER BY k.ms LIMIT 1), c.confirmed_at) END AS published_at,
           e.seq, e.xid
    FROM outbox.stored_event e
    CROSS JOIN LATERAL (SELECT COALESCE(e.topic, pg_catalog.split_part(e.event_type, '.', 1)) AS topic) t
    JOIN outbox.sink_cursor c ON c.sink_id = 1
    CROSS JOIN LATERAL outbox.locate(c.sink_id, e.anchor, e.xid, e.seq) l
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
               WHEN l.ms IS NULL THEN 'pending'
               WHEN (l.ms, l.n) > (c.ms, c.n) THEN CASE WHEN l.ms <= c.tick_ms THEN 'processing' ELSE 'pending' END
               WHEN (l.ms, l.n) >= (s.held_ms, s.held_n) THEN 'failed'
               ELSE 'published' END AS status) st;
COMMENT ON VIEW outbox.event IS 'one row for each retained event, with what became of it in the sink "default"';
COMMENT ON COLUMN outbox.event.status IS
    'pending, processing (in the batch being sent), published, failed (being retried) or dead_letter';
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

CREATE FUNCTION outbox.flush("timeout" interval DEFAULT '30 seconds') RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_flush';
COMMENT ON FUNCTION outbox.flush(interval) IS
    'wait until everything committed before the call is published; false when the time is over first';

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
           'outbox:{' || COALESCE(m.topic, e.topic) || '}',
           m."position", e."position", COALESCE(m.event_id, e.event_id), COALESCE(m.entries, e.entries),
           CASE WHEN m.finding IS NULL AND e.belongs_position IS NOT NULL
                    THEN e.detail || ': ' || e.belongs_position || ' in outbox:{' || e.belongs_topic || '}'
                WHEN e.finding IS NULL THEN m.detail
                WHEN m.finding IS NULL THEN e.detail
                WHEN m.topic <> e.topic THEN 'the event is in outbox:{' || e.topic || '}' END
      FROM (SELECT * FROM compared c WHERE c.finding <> 'extra') m
      FULL JOIN (SELECT * FROM compared c WHERE c.finding = 'extra') e ON m.event_id = e.event_id AND m.nth = e.nth
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
ALTER FUNCTION outbox.pause(text) OWNER TO outbox_worker;
ALTER FUNCTION outbox.resume(text, boolean) OWNER TO outbox_worker;

GRANT USAGE ON SCHEMA outbox TO outbox_worker, outbox_emitter, outbox_reader, outbox_admin;

GRANT EXECUTE ON FUNCTION
    outbox.emit(text, text, text, text, int, jsonb, text, timestamptz, uuid),
    outbox.emit(text, json, text, text, int, jsonb, text, timestamptz, uuid),
    outbox.emit(text, jsonb, text, text, int, jsonb, text, timestamptz, uuid)
    TO outbox_emitter;
GRANT EXECUTE ON FUNCTION outbox.flush(interval) TO outbox_emitter, outbox_reader, outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.anchor(), outbox.worker_state(), outbox.redis_url(),
    outbox.locate(int, int, xid8, bigint), outbox.lag(int, bigint, bigint),
    outbox.restored_lag(int), outbox.verify_state() TO outbox_reader, outbox_admin;
GRANT SELECT ON outbox.event, outbox.sink, outbox.sink_cursor, outbox.stat_sink, outbox.stat_verify, outbox.dead_letter,
    outbox.tick TO outbox_reader, outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.pause(text), outbox.resume(text, boolean),
    outbox.compare(text, timestamptz, timestamptz), outbox.verify(text, timestamptz, timestamptz) TO outbox_admin;

-- last: the launcher starts this database's worker when this transaction commits
SELECT outbox.wake(true);
