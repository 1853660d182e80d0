-- operating

CREATE OR REPLACE FUNCTION outbox.wake(reload boolean DEFAULT false) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_wake';
COMMENT ON FUNCTION outbox.wake(boolean) IS 'wake this database''s workers when the transaction commits; with reload they look at their sinks again';

CREATE OR REPLACE FUNCTION outbox.flush("timeout" interval DEFAULT '30 seconds', sink text DEFAULT 'default') RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_flush';
COMMENT ON FUNCTION outbox.flush(interval, text) IS
    'wait until everything committed before the call is published in a sink, or with null in all of them; false when the time is over first';

-- the default sink has no row until something must be remembered of it
CREATE OR REPLACE FUNCTION outbox.keep_default_sink() RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO outbox.sink_definition (id, uuid, name, anchor)
    SELECT 1, gen_random_uuid(), 'default', outbox.anchor()
    ON CONFLICT DO NOTHING
$$;
COMMENT ON FUNCTION outbox.keep_default_sink() IS 'give the sink "default" a row of its own';

CREATE OR REPLACE FUNCTION outbox.pause(sink text DEFAULT 'default') RETURNS void
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

CREATE OR REPLACE FUNCTION outbox.resume(sink text DEFAULT 'default', take_over boolean DEFAULT false) RETURNS void
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
