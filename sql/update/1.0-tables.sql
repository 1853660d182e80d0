-- From version 1.0: what tables have gained since. Functions and views follow, as a new installation has them.
\echo Use "ALTER EXTENSION outbox UPDATE" to load this file. \quit

CREATE SEQUENCE outbox.sink_seq AS int MINVALUE 2 MAXVALUE 65000 CACHE 1;
COMMENT ON SEQUENCE outbox.sink_seq IS 'ids of sinks; none is given twice';

ALTER TABLE outbox.sink_definition
    ADD COLUMN url text,
    ADD COLUMN stream text NOT NULL DEFAULT 'outbox:{%t}',
    ADD COLUMN start_ms bigint NOT NULL DEFAULT 0,
    ADD COLUMN start_n bigint NOT NULL DEFAULT 0,
    ADD COLUMN used boolean NOT NULL DEFAULT false,
    ADD COLUMN confirm text NOT NULL DEFAULT 'memory';
COMMENT ON COLUMN outbox.sink_definition.url IS 'null: outbox.redis_url';
COMMENT ON COLUMN outbox.sink_definition.start_ms IS 'with start_n: the first position that belongs to the sink';
COMMENT ON COLUMN outbox.sink_definition.confirm IS 'how safe an entry must be before it counts as published';
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
