-- who may do what

DO $$
DECLARE
    object record;
BEGIN
    FOR object IN
        SELECT c.oid::pg_catalog.regclass AS name, c.relkind FROM pg_catalog.pg_class c
         WHERE c.relnamespace OPERATOR(pg_catalog.=) 'outbox'::pg_catalog.regnamespace
           AND c.relkind IN ('r', 'p', 'v', 'S')
           -- an update shall not lock what it leaves as it is: everybody who emits would have to wait, or it for them
           AND c.relowner OPERATOR(pg_catalog.<>) 'outbox_worker'::pg_catalog.regrole
    LOOP
        EXECUTE pg_catalog.format('ALTER %s %s OWNER TO outbox_worker',
            CASE object.relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, object.name);
    END LOOP;
END
$$;

ALTER FUNCTION outbox.keep_default_sink() OWNER TO outbox_worker;
ALTER FUNCTION outbox.restored_lag(int) OWNER TO outbox_worker;
ALTER FUNCTION outbox.create_sink(text, text, text[], text[], text, text, text, text, bigint, interval, text) OWNER TO outbox_worker;
ALTER FUNCTION outbox.alter_sink(text, text, text[], text[], text, text, bigint, interval, text) OWNER TO outbox_worker;
ALTER FUNCTION outbox.drop_sink(text, boolean) OWNER TO outbox_worker;
ALTER FUNCTION outbox.replay(text, text, text, text[], text, int) OWNER TO outbox_worker;
ALTER FUNCTION outbox.cancel_replay(bigint) OWNER TO outbox_worker;
ALTER FUNCTION outbox.redrive(uuid, text, text, text, timestamptz, timestamptz) OWNER TO outbox_worker;
ALTER FUNCTION outbox.discard(uuid, text, text, text, timestamptz, timestamptz) OWNER TO outbox_worker;
ALTER FUNCTION outbox.cancel(uuid) OWNER TO outbox_worker;
ALTER FUNCTION outbox.pause(text) OWNER TO outbox_worker;
ALTER FUNCTION outbox.resume(text, boolean) OWNER TO outbox_worker;

GRANT USAGE ON SCHEMA outbox TO outbox_worker, outbox_emitter, outbox_reader, outbox_admin;

-- with the owners that they have for good, so that an update leaves the same rights, down to those that a dump goes by
DO $$
DECLARE
    object record;
BEGIN
    FOR object IN
        SELECT p.oid::pg_catalog.regprocedure AS name FROM pg_catalog.pg_proc p
         WHERE p.pronamespace OPERATOR(pg_catalog.=) 'outbox'::pg_catalog.regnamespace
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', object.name);
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO outbox_worker', object.name);
    END LOOP;
END
$$;

GRANT EXECUTE ON FUNCTION
    outbox.emit(text, text, text, text, int, jsonb, text, timestamptz, uuid, timestamptz, text),
    outbox.emit(text, json, text, text, int, jsonb, text, timestamptz, uuid, timestamptz, text),
    outbox.emit(text, jsonb, text, text, int, jsonb, text, timestamptz, uuid, timestamptz, text)
    TO outbox_emitter;
GRANT EXECUTE ON FUNCTION outbox.cancel(uuid) TO outbox_emitter, outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.flush(interval, text) TO outbox_emitter, outbox_reader, outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.anchor(), outbox.worker_state(), outbox.redis_url(),
    outbox.locate(int, int, xid8, bigint, bigint), outbox.takes(int, bigint, text, text),
    outbox.passes(int, bigint, uuid, text, text, text, text, int, timestamptz, text, text, int), outbox.lag(int, bigint, bigint),
    outbox.restored_lag(int), outbox.verify_state(), outbox.consumer_state(), outbox.redis_state(), outbox.retention_state(),
    outbox.metrics_label(text), outbox.metrics() TO outbox_reader, outbox_admin;
GRANT SELECT ON outbox.event, outbox.sink_event, outbox.sink, outbox.sink_cursor, outbox.stat_sink, outbox.stat_verify, outbox.dead_letter,
    outbox.tick, outbox.stat_consumer, outbox.stat_retention TO outbox_reader, outbox_admin;
GRANT SELECT ON outbox.delayed_event, outbox.stat_delayed TO outbox_reader, outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.create_sink(text, text, text[], text[], text, text, text, text, bigint, interval, text),
    outbox.alter_sink(text, text, text[], text[], text, text, bigint, interval, text), outbox.drop_sink(text, boolean) TO outbox_admin;
GRANT SELECT ON outbox.stat_replay TO outbox_reader, outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.replay(text, text, text, text[], text, int),
    outbox.replay(timestamptz, timestamptz, text, text[], text, int), outbox.cancel_replay(bigint) TO outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.redrive(uuid, text, text, text, timestamptz, timestamptz),
    outbox.discard(uuid, text, text, text, timestamptz, timestamptz) TO outbox_admin;
GRANT EXECUTE ON FUNCTION outbox.pause(text), outbox.resume(text, boolean),
    outbox.compare(text, timestamptz, timestamptz), outbox.verify(text, timestamptz, timestamptz) TO outbox_admin;

-- last: the launcher starts this database's worker when this transaction commits
SELECT outbox.wake(true);
