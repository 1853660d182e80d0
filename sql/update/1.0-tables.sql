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
    ADD COLUMN used boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN outbox.sink_definition.url IS 'null: outbox.redis_url';
COMMENT ON COLUMN outbox.sink_definition.start_ms IS 'with start_n: the first position that belongs to the sink';
COMMENT ON COLUMN outbox.sink_definition.used IS 'something may have been sent to it';

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
