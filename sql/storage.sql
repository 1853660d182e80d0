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
                payload text NOT NULL,
                sink_id int,
                recorded_at timestamptz
            );
            CREATE INDEX event_%1$s_xid_seq ON outbox.event_%1$s (xid, seq);
            COMMENT ON TABLE outbox.event_%1$s IS 'a partition of the retained events; read outbox.event instead';
            COMMENT ON COLUMN outbox.event_%1$s.sink_id IS 'appended again, by outbox.redrive() or outbox.replay(), for this sink alone; null: for all';
            COMMENT ON COLUMN outbox.event_%1$s.recorded_at IS 'when it was delivered, or appended again; null: with its transaction';
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

-- delayed events: a ring by due time, so that each partition empties as a whole. Number 0 to 7: the hour in which the event is due,
-- for those of the next hours; 8 to 15: the day; 16: whatever is further ahead
CREATE TABLE outbox.delayed (
    deliver_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    emitted_at timestamptz NOT NULL,
    event_id uuid NOT NULL,
    anchor int NOT NULL,
    version int NOT NULL,
    partition int NOT NULL,
    event_type text NOT NULL,
    topic text,
    aggregate_type text,
    aggregate_id text,
    headers text,
    payload text NOT NULL
) PARTITION BY LIST (partition);
CREATE INDEX delayed_due ON outbox.delayed (deliver_at, seq);
CREATE INDEX delayed_event_id ON outbox.delayed (event_id);
COMMENT ON TABLE outbox.delayed IS 'events that are not due yet; read outbox.delayed_event instead';

DO $$
DECLARE
    i int;
BEGIN
    FOR i IN 0..16 LOOP
        EXECUTE pg_catalog.format('CREATE TABLE outbox.delayed_%1$s PARTITION OF outbox.delayed FOR VALUES IN (%1$s)', i);
        EXECUTE pg_catalog.format('COMMENT ON TABLE outbox.delayed_%s IS %L', i, 'a partition of the delayed events');
        PERFORM pg_catalog.pg_extension_config_dump(pg_catalog.format('outbox.delayed_%s', i)::pg_catalog.regclass, '');
    END LOOP;
END
$$;

-- keys of events that are emitted once, in the same ring as events
DO $$
DECLARE
    i int;
BEGIN
    FOR i IN 0..7 LOOP
        EXECUTE pg_catalog.format($sql$
            CREATE TABLE outbox.dedupe_%1$s (
                event_id uuid NOT NULL,
                key text COLLATE "C" NOT NULL
            );
            CREATE UNIQUE INDEX dedupe_%1$s_key ON outbox.dedupe_%1$s (key);
            COMMENT ON TABLE outbox.dedupe_%1$s IS 'a partition of the dedupe keys that have been used, with the first event of each';
        $sql$, i);
        PERFORM pg_catalog.pg_extension_config_dump(pg_catalog.format('outbox.dedupe_%s', i)::pg_catalog.regclass, '');
    END LOOP;
END
$$;

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
    used boolean NOT NULL DEFAULT false,
    trimming text NOT NULL DEFAULT 'off',
    max_length bigint,
    max_age interval,
    confirm text NOT NULL DEFAULT 'memory'
);
COMMENT ON TABLE outbox.sink_definition IS 'sinks that have been used or changed; read outbox.sink instead';
COMMENT ON COLUMN outbox.sink_definition.url IS 'null: outbox.redis_url';
COMMENT ON COLUMN outbox.sink_definition.start_ms IS 'with start_n: the first position that belongs to the sink';
COMMENT ON COLUMN outbox.sink_definition.confirm IS 'how safe an entry must be before it counts as published';
COMMENT ON COLUMN outbox.sink_definition.used IS 'something may have been sent to it';
COMMENT ON COLUMN outbox.sink_definition.trimming IS 'what of its streams is trimmed: off, consumed or limits; max_length and max_age say how much is kept';

-- a batch that is sent again has to have the events that it had the first time, so a filter that has been changed is kept
CREATE TABLE outbox.sink_filter (
    sink_id int NOT NULL,
    from_ms bigint NOT NULL,
    topics text[],
    event_types text[],
    transform text,
    transform_owner text,
    PRIMARY KEY (sink_id, from_ms)
);
COMMENT ON TABLE outbox.sink_filter IS 'what each sink takes, from which tick on; without a row it takes everything';
COMMENT ON COLUMN outbox.sink_filter.transform IS 'the function that makes its payloads; null: they are as they were emitted';
COMMENT ON COLUMN outbox.sink_filter.transform_owner IS 'the role whose function it must be, and whose rights it has';

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

-- Kept while their events are: whatever is sent or compared again must leave them out.
CREATE TABLE outbox.settled_letter (
    sink_id int NOT NULL,
    event_id uuid NOT NULL,
    seq bigint NOT NULL,
    outcome text NOT NULL,
    position text NOT NULL,
    dead_at timestamptz NOT NULL,
    settled_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (sink_id, event_id, seq)
);
COMMENT ON TABLE outbox.settled_letter IS 'dead letters that were redriven or discarded';
COMMENT ON COLUMN outbox.settled_letter.position IS 'where the event would have been in its stream';

CREATE SEQUENCE outbox.replay_seq AS bigint CACHE 1;
COMMENT ON SEQUENCE outbox.replay_seq IS 'ids of replays';

-- A task has the anchor of its database: a copy does not go on with it.
CREATE TABLE outbox.replay_task (
    id bigint PRIMARY KEY,
    uuid uuid NOT NULL,
    sink_id int NOT NULL,
    anchor int NOT NULL,
    state text NOT NULL DEFAULT 'waiting',
    into_stream text,
    since_ms bigint NOT NULL,
    since_n bigint NOT NULL,
    until_ms bigint NOT NULL,
    until_n bigint NOT NULL,
    topics text[],
    rate int,
    ms bigint NOT NULL DEFAULT 0,
    n bigint NOT NULL DEFAULT 0,
    done bigint NOT NULL DEFAULT 0,
    total bigint,
    dropped_ms bigint,
    attempts int NOT NULL DEFAULT 0,
    created_by name NOT NULL,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    started_at timestamptz,
    ended_at timestamptz,
    last_error text
) WITH (fillfactor = 50);
COMMENT ON TABLE outbox.replay_task IS 'what outbox.replay() was asked for, and how far it is; read outbox.stat_replay instead';
COMMENT ON COLUMN outbox.replay_task.into_stream IS 'template of the streams that it appends to; null: those of the sink';
COMMENT ON COLUMN outbox.replay_task.ms IS 'with n: all up to this position is done';
COMMENT ON COLUMN outbox.replay_task.attempts IS 'times that a worker has begun since the last progress';

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
SELECT pg_catalog.pg_extension_config_dump('outbox.settled_letter', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.replay_seq', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.replay_task', '');
