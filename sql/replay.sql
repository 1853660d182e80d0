-- appending again what was published before

CREATE OR REPLACE FUNCTION outbox.replay_limit(name text, value text, upper boolean, OUT ms bigint, OUT n bigint)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    us numeric;
BEGIN
    IF value ~ '^\d{1,18}-\d{1,18}$' THEN
        ms := split_part(value, '-', 1)::bigint;
        n := split_part(value, '-', 2)::bigint;
        RETURN;
    END IF;
    BEGIN
        us := extract(epoch FROM value::timestamptz) * 1000;
    EXCEPTION WHEN datetime_field_overflow OR invalid_datetime_format OR invalid_text_representation THEN
        RAISE EXCEPTION '% is neither a time nor a position: "%"', name, value
            USING ERRCODE = 'invalid_parameter_value', HINT = 'A position is an entry ID, such as 1795273184059-0.';
    END;
    ms := CASE WHEN upper THEN floor(greatest(least(us, 9e17), 0)) ELSE ceil(greatest(least(us, 9e17), 0)) END;
    n := CASE WHEN upper THEN 9223372036854775807 ELSE 0 END;
END
$$;
COMMENT ON FUNCTION outbox.replay_limit(text, text, boolean) IS 'the first or last position that a time or position means';

CREATE OR REPLACE FUNCTION outbox.replay(sink text DEFAULT 'default', since text DEFAULT NULL, until text DEFAULT NULL,
        topics text[] DEFAULT NULL, into_stream text DEFAULT NULL, rate int DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    source record;
    confirmed record;
    first record;
    last record;
    other text;
    new_id bigint;
BEGIN
    SELECT d.* INTO source FROM outbox.sink_definition d WHERE d.name = sink;
    IF NOT FOUND THEN
        IF EXISTS (SELECT FROM outbox.sink s WHERE s.name = replay.sink) THEN
            RAISE EXCEPTION 'sink "%" has not published anything', sink USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        RAISE EXCEPTION 'sink "%" does not exist', sink
            USING ERRCODE = 'undefined_object', HINT = 'The sinks are listed in outbox.sink.';
    END IF;
    IF source.anchor <> outbox.anchor() THEN
        RAISE EXCEPTION 'sink "%" is paused: this database was restored from a dump, copied or upgraded', sink
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('If it is the real one, run SELECT outbox.resume(%L) first.', sink);
    END IF;
    PERFORM outbox.check_patterns('topics', replay.topics);
    IF rate < 1 THEN
        RAISE EXCEPTION 'rate must be at least 1' USING ERRCODE = 'invalid_parameter_value', HINT = 'It is in events per second.';
    END IF;
    IF into_stream = source.stream THEN
        into_stream := NULL;
    END IF;
    IF into_stream IS NOT NULL THEN
        PERFORM outbox.check_stream(into_stream);
        SELECT d.name INTO other FROM outbox.sink_definition d
         WHERE outbox.streams_overlap(d.stream, replay.into_stream) AND outbox.redis_endpoint(d.url) = outbox.redis_endpoint(source.url)
         ORDER BY d.id LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'the replay could have the same streams as sink "%"', other
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'Use another stream template, such as ''replay:{%t}'', or none for the streams of the sink itself.';
        END IF;
    END IF;

    SELECT c.ms, greatest(c.n, 0) AS n INTO confirmed FROM outbox.sink_cursor c WHERE c.sink_id = source.id;
    SELECT l.ms, l.n INTO first FROM outbox.replay_limit('since', COALESCE(since, '0-0'), false) l;
    SELECT l.ms, l.n INTO last FROM outbox.replay_limit('until', COALESCE(until, confirmed.ms || '-' || confirmed.n), true) l;
    IF (first.ms, first.n) > (last.ms, last.n) AND until IS NOT NULL THEN
        RAISE EXCEPTION 'since must not be later than until' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (last.ms, last.n) > (confirmed.ms, confirmed.n) THEN
        last := confirmed;
    END IF;

    new_id := nextval('outbox.replay_seq');
    INSERT INTO outbox.replay_task (id, uuid, sink_id, anchor, into_stream, since_ms, since_n, until_ms, until_n, topics, rate, created_by)
    VALUES (new_id, gen_random_uuid(), source.id, source.anchor, replay.into_stream, greatest(first.ms, source.start_ms),
            CASE WHEN first.ms >= source.start_ms THEN first.n ELSE source.start_n END, last.ms, last.n, replay.topics, replay.rate,
            session_user);
    DELETE FROM outbox.replay_task t WHERE t.ended_at < now() - interval '30 days';
    PERFORM outbox.wake(true);
    RETURN new_id;
END
$$;
COMMENT ON FUNCTION outbox.replay(text, text, text, text[], text, int) IS
    'append retained events of a sink again, in order: into other streams with the positions that they have, or to the ends of its own; returns the id in outbox.stat_replay';

CREATE OR REPLACE FUNCTION outbox.replay(since timestamptz, until timestamptz DEFAULT NULL, sink text DEFAULT 'default',
        topics text[] DEFAULT NULL, into_stream text DEFAULT NULL, rate int DEFAULT NULL) RETURNS bigint
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO' AS $$
    SELECT outbox.replay(sink, since::text, until::text, topics, into_stream, rate)
$$;
COMMENT ON FUNCTION outbox.replay(timestamptz, timestamptz, text, text[], text, int) IS
    'the same, for those who have times and not texts';

CREATE OR REPLACE FUNCTION outbox.cancel_replay(id bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    UPDATE outbox.replay_task t SET state = 'cancelled', ended_at = clock_timestamp()
     WHERE t.id = cancel_replay.id AND t.state IN ('waiting', 'running');
    IF FOUND THEN
        RETURN true;
    END IF;
    IF NOT EXISTS (SELECT FROM outbox.replay_task t WHERE t.id = cancel_replay.id) THEN
        RAISE EXCEPTION 'replay % does not exist', id
            USING ERRCODE = 'undefined_object', HINT = 'They are listed in outbox.stat_replay.';
    END IF;
    RETURN false;
END
$$;
COMMENT ON FUNCTION outbox.cancel_replay(bigint) IS 'end a replay; what it has appended stays. False where it had ended already';

CREATE OR REPLACE VIEW outbox.stat_replay AS
    SELECT t.id, s.name AS sink, CASE WHEN t.anchor <> outbox.anchor() THEN 'interrupted' ELSE t.state END AS state,
           pg_catalog.replace(COALESCE(t.into_stream, s.stream), '%t', '*') AS stream, t.topics,
           t.since_ms || '-' || t.since_n AS since,
           t.until_ms || CASE WHEN t.until_n < 9223372036854775807 THEN '-' || t.until_n ELSE '' END AS until,
           CASE WHEN t.ms > 0 THEN t.ms || '-' || t.n END AS position,
           t.done, t.total, t.rate, t.created_by, t.created_at, t.started_at, t.ended_at,
           CASE WHEN t.dropped_ms IS NOT NULL THEN pg_catalog.to_timestamp(t.dropped_ms / 1000.0) END AS not_retained_upto,
           t.last_error
    FROM outbox.replay_task t JOIN outbox.sink s ON s.id = t.sink_id;
COMMENT ON VIEW outbox.stat_replay IS 'replays that run or have ended in the last thirty days, and how far they are';
COMMENT ON COLUMN outbox.stat_replay.since IS 'the first position that is replayed';
COMMENT ON COLUMN outbox.stat_replay.state IS
    'waiting, running, done, cancelled, failed (see last_error), or interrupted: by a restore or an upgrade of the database';
COMMENT ON COLUMN outbox.stat_replay.stream IS 'the streams that it appends to; * is the topic';
COMMENT ON COLUMN outbox.stat_replay.position IS 'all up to here is done; of the position that the events were published at';
COMMENT ON COLUMN outbox.stat_replay.total IS 'events that it will append; null before they have been counted';
COMMENT ON COLUMN outbox.stat_replay.rate IS 'events per second that it may append; null: as many as it can';
COMMENT ON COLUMN outbox.stat_replay.not_retained_upto IS 'it was asked to begin earlier, but events up to here were dropped by retention';
COMMENT ON COLUMN outbox.stat_replay.last_error IS 'what went wrong last; while it is running it is tried again';
