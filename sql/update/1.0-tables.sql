-- From version 1.0: what tables have gained since. Functions and views follow, as a new installation has them.
\echo Use "ALTER EXTENSION outbox UPDATE" to load this file. \quit

CREATE SEQUENCE outbox.sink_seq AS int MINVALUE 2 MAXVALUE 65000 CACHE 1;
COMMENT ON SEQUENCE outbox.sink_seq IS 'ids of sinks; none is given twice';

ALTER TABLE outbox.sink_definition
    ADD COLUMN url text,
    ADD COLUMN stream text NOT NULL DEFAULT 'outbox:{%t}',
    ADD COLUMN start_ms bigint NOT NULL DEFAULT 0,
    ADD COLUMN start_n bigint NOT NULL DEFAULT 0,
    ADD COLUMN used boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN outbox.sink_definition.url IS 'null: outbox.redis_url';
COMMENT ON COLUMN outbox.sink_definition.start_ms IS 'with start_n: the first position that belongs to the sink';
COMMENT ON COLUMN outbox.sink_definition.used IS 'something may have been sent to it';

CREATE TABLE outbox.sink_filter (
    sink_id int NOT NULL,
    from_ms bigint NOT NULL,
    topics text[],
    event_types text[],
    PRIMARY KEY (sink_id, from_ms)
);
COMMENT ON TABLE outbox.sink_filter IS 'what each sink takes, from which tick on; without a row it takes everything';

SELECT pg_catalog.pg_extension_config_dump('outbox.sink_seq', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.sink_filter', '');

DO $$
DECLARE
    i int;
BEGIN
    FOR i IN 0..7 LOOP
        EXECUTE pg_catalog.format('ALTER TABLE outbox.event_%s ADD COLUMN sink_id int', i);
        EXECUTE pg_catalog.format('COMMENT ON COLUMN outbox.event_%s.sink_id IS %L', i,
            'appended again, by outbox.redrive() or outbox.replay(), for this sink alone; null: for all');
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
SELECT pg_catalog.pg_extension_config_dump('outbox.replay_seq', '');
SELECT pg_catalog.pg_extension_config_dump('outbox.replay_task', '');
