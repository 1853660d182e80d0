-- From version 1.0: what tables have gained since. Functions and views follow, as a new installation has them.
\echo Use "ALTER EXTENSION outbox UPDATE" to load this file. \quit

-- From 1.1 on this is only: SELECT outbox.begin_update('<version>');
DO $$
BEGIN
    CREATE FUNCTION outbox.begin_update(version text) RETURNS void
        LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_begin_update';
EXCEPTION WHEN undefined_function THEN
    RAISE EXCEPTION 'the server has the library of an older version of outbox than 1.1'
        USING ERRCODE = 'object_not_in_prerequisite_state',
              HINT = 'Restart the server before ALTER EXTENSION outbox UPDATE.';
END
$$;
SELECT outbox.begin_update('1.1');

-- Whoever reads a view locks it, and then what it is made of. In the same order neither can wait for the other. Of the views alone:
-- LOCK TABLE would lock what is below them as well, and with it everybody who emits.
ALTER VIEW outbox.stat_verify OWNER TO outbox_worker;
ALTER VIEW outbox.stat_sink OWNER TO outbox_worker;
ALTER VIEW outbox.event OWNER TO outbox_worker;
ALTER VIEW outbox.sink_cursor OWNER TO outbox_worker;
ALTER VIEW outbox.sink OWNER TO outbox_worker;
ALTER VIEW outbox.stored_event OWNER TO outbox_worker;
ALTER VIEW outbox.tick OWNER TO outbox_worker;

CREATE SEQUENCE outbox.sink_seq AS int MINVALUE 2 MAXVALUE 65000 CACHE 1;
COMMENT ON SEQUENCE outbox.sink_seq IS 'ids of sinks; none is given twice';

ALTER TABLE outbox.sink_definition
    ADD COLUMN url text,
    ADD COLUMN stream text NOT NULL DEFAULT 'outbox:{%t}',
    ADD COLUMN start_ms bigint NOT NULL DEFAULT 0,
    ADD COLUMN start_n bigint NOT NULL DEFAULT 0,
    ADD COLUMN used boolean NOT NULL DEFAULT false,
    ADD COLUMN trimming text NOT NULL DEFAULT 'off',
    ADD COLUMN max_length bigint,
    ADD COLUMN max_age interval,
    ADD COLUMN confirm text NOT NULL DEFAULT 'memory';
COMMENT ON COLUMN outbox.sink_definition.url IS 'null: outbox.redis_url';
COMMENT ON COLUMN outbox.sink_definition.start_ms IS 'with start_n: the first position that belongs to the sink';
COMMENT ON COLUMN outbox.sink_definition.confirm IS 'how safe an entry must be before it counts as published';
COMMENT ON COLUMN outbox.sink_definition.used IS 'something may have been sent to it';
COMMENT ON COLUMN outbox.sink_definition.trimming IS 'what of its streams is trimmed: off, consumed or limits; max_length and max_age say how much is kept';

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

SELECT pg_catalog.pg_extension_config_dump('outbox.sink_seq', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.sink_filter', '');

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
    FOR i IN 0..7 LOOP
        EXECUTE pg_catalog.format('ALTER TABLE outbox.event_%s ADD COLUMN sink_id int, ADD COLUMN recorded_at timestamptz', i);
        EXECUTE pg_catalog.format('COMMENT ON COLUMN outbox.event_%s.sink_id IS %L', i,
            'appended again, by outbox.redrive() or outbox.replay(), for this sink alone; null: for all');
        EXECUTE pg_catalog.format('COMMENT ON COLUMN outbox.event_%s.recorded_at IS %L', i,
            'when it was delivered, or appended again; null: with its transaction');
    END LOOP;
END
$$;
CREATE OR REPLACE VIEW outbox.stored_event AS
    SELECT * FROM outbox.event_0 UNION ALL SELECT * FROM outbox.event_1
    UNION ALL SELECT * FROM outbox.event_2 UNION ALL SELECT * FROM outbox.event_3
    UNION ALL SELECT * FROM outbox.event_4 UNION ALL SELECT * FROM outbox.event_5
    UNION ALL SELECT * FROM outbox.event_6 UNION ALL SELECT * FROM outbox.event_7;

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

SELECT pg_catalog.pg_extension_config_dump('outbox.settled_letter', '');

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
SELECT pg_catalog.pg_extension_config_dump('outbox.replay_seq', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.replay_task', '');
