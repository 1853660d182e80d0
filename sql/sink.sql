-- sinks

CREATE OR REPLACE FUNCTION outbox.check_name(name text) RETURNS void
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_check_name';
COMMENT ON FUNCTION outbox.check_name(text) IS 'an error unless a sink may be called so';

CREATE OR REPLACE FUNCTION outbox.redis_endpoint(url text) RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_redis_endpoint';
COMMENT ON FUNCTION outbox.redis_endpoint(text) IS 'the server and database that a URL leads to, or with null outbox.redis_url';

CREATE OR REPLACE FUNCTION outbox.check_url(url text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_check_url';
COMMENT ON FUNCTION outbox.check_url(text) IS 'an error unless a sink may have this URL';

CREATE OR REPLACE FUNCTION outbox.check_stream(stream text) RETURNS void
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_check_stream';
COMMENT ON FUNCTION outbox.check_stream(text) IS 'an error unless it is a template for names of streams';

CREATE OR REPLACE FUNCTION outbox.streams_overlap(one text, other text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_streams_overlap';
COMMENT ON FUNCTION outbox.streams_overlap(text, text) IS 'whether two templates can name the same stream';

CREATE OR REPLACE FUNCTION outbox.check_patterns(name text, patterns text[]) RETURNS void
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'outbox_check_patterns';
COMMENT ON FUNCTION outbox.check_patterns(text, text[]) IS 'an error unless these are patterns of topics or event_types';

CREATE OR REPLACE FUNCTION outbox.check_transform(transform text, OUT signature text, OUT owner text)
    LANGUAGE c STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_check_transform';
COMMENT ON FUNCTION outbox.check_transform(text) IS
    'an error unless the caller may give this function to a sink: its name as it is kept, and the role whose rights it has';

CREATE OR REPLACE FUNCTION outbox.stop_worker(sink_id int) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_stop_worker';
COMMENT ON FUNCTION outbox.stop_worker(int) IS 'end the worker of a sink until this transaction is over';

-- How the streams of a sink are trimmed. `whole`: these are all of its options, and they have to make sense together.
CREATE OR REPLACE FUNCTION outbox.check_trimming(trimming text, max_length bigint, max_age interval, whole boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF trimming NOT IN ('off', 'consumed', 'limits') THEN
        RAISE EXCEPTION 'invalid trimming "%"', left(regexp_replace(trimming, '[^ -~]', '?', 'g'), 60)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Use ''off'', ''consumed'' or ''limits''.';
    END IF;
    IF max_length < 0 THEN
        RAISE EXCEPTION 'max_length must not be negative' USING ERRCODE = 'invalid_parameter_value', HINT = '0 is no limit.';
    END IF;
    IF max_age < '0' OR max_age > '100 years' THEN
        RAISE EXCEPTION 'max_age must be between 0 and 100 years' USING ERRCODE = 'invalid_parameter_value', HINT = '0 is no limit.';
    END IF;
    IF whole AND trimming = 'limits' AND NULLIF(max_length, 0) IS NULL AND NULLIF(max_age, '0') IS NULL THEN
        RAISE EXCEPTION 'trimming => ''limits'' needs a limit'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give max_length, max_age or both.';
    END IF;
    IF whole AND trimming = 'off' AND (NULLIF(max_length, 0) IS NOT NULL OR NULLIF(max_age, '0') IS NOT NULL) THEN
        RAISE EXCEPTION 'max_length and max_age are of no use while trimming is off'
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Use trimming => ''consumed'' or ''limits'', or take the limits away with max_length => 0 and max_age => ''0''.';
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.check_trimming(text, bigint, interval, boolean) IS 'an error unless a sink may be trimmed so';

-- With an older snapshot, ticks would be missed that workers have recorded since.
CREATE OR REPLACE FUNCTION outbox.check_isolation() RETURNS void
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
CREATE OR REPLACE FUNCTION outbox.check_separate(sink_id int, url text, stream text) RETURNS void
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
    IF EXISTS (SELECT FROM outbox.replay_task t JOIN outbox.sink_definition d ON d.id = t.sink_id
                WHERE t.ended_at IS NULL AND outbox.streams_overlap(t.into_stream, check_separate.stream)
                  AND outbox.redis_endpoint(d.url) = endpoint) THEN
        RAISE EXCEPTION 'the sink could have the same streams as a replay that runs'
            USING ERRCODE = 'object_in_use', HINT = 'It is in outbox.stat_replay. Wait for its end, or use another stream template.';
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.check_separate(int, text, text) IS 'an error where another sink can have the same streams';

-- The history of a sink is cut into batches at the ticks of the sink "default", which it gets copies of: so each batch is as
-- small as it was then, and has its events in the same order and at the same positions. Behind the last of these ticks the sink
-- goes on with ticks of its own.
CREATE OR REPLACE FUNCTION outbox.create_sink(name text, url text, topics text[] DEFAULT NULL, event_types text[] DEFAULT NULL,
        stream text DEFAULT 'outbox:{%t}', start text DEFAULT 'now', transform text DEFAULT NULL, trimming text DEFAULT NULL,
        max_length bigint DEFAULT NULL, max_age interval DEFAULT NULL, confirm text DEFAULT NULL) RETURNS void
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
    made record;
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
    SELECT t.signature, t.owner INTO made FROM outbox.check_transform(create_sink.transform) t;
    PERFORM outbox.check_trimming(COALESCE(create_sink.trimming, 'off'), create_sink.max_length, create_sink.max_age, true);
    PERFORM outbox.check_confirm(create_sink.confirm);
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
        -- what was dropped is below what the second tick behind it sees as its end (outbox.verify() goes by the same)
        IF dropped AND (before.ms IS NULL OR pg_snapshot_xmin(before.snapshot) <
               (SELECT max(n.upto) FROM (SELECT pg_snapshot_xmax(t.snapshot) AS upto FROM outbox.tick t
                 WHERE t.sink_id = 1 AND t.anchor = outbox.anchor() AND t.ms > oldest_ms ORDER BY t.ms LIMIT 2) n)) THEN
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
    INSERT INTO outbox.sink_definition (id, uuid, name, anchor, url, stream, start_ms, start_n, trimming, max_length, max_age, confirm)
    VALUES (new_id, gen_random_uuid(), create_sink.name, outbox.anchor(), create_sink.url, create_sink.stream,
            COALESCE(base_ms + 1, 0), first_n, COALESCE(create_sink.trimming, 'off'), NULLIF(create_sink.max_length, 0),
            NULLIF(create_sink.max_age, '0'), COALESCE(create_sink.confirm, 'memory'));
    IF base_ms IS NOT NULL THEN
        INSERT INTO outbox.checkpoint (sink_id, ms, n, recorded_at)
        VALUES (new_id, CASE WHEN first_n > 0 THEN base_ms + 1 ELSE base_ms END, greatest(first_n - 1, 0), clock_timestamp());
    END IF;
    IF create_sink.topics IS NOT NULL OR create_sink.event_types IS NOT NULL OR made.signature IS NOT NULL THEN
        INSERT INTO outbox.sink_filter (sink_id, from_ms, topics, event_types, transform, transform_owner)
        VALUES (new_id, 0, create_sink.topics, create_sink.event_types, made.signature, made.owner);
    END IF;
    PERFORM outbox.wake(true);
END
$$;
COMMENT ON FUNCTION outbox.create_sink(text, text, text[], text[], text, text, text, text, bigint, interval, text) IS
    'add a sink with a worker and a cursor of its own; start is now, beginning, a time or a position of sink "default"';

CREATE OR REPLACE FUNCTION outbox.sink_id(sink text) RETURNS int
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
CREATE OR REPLACE FUNCTION outbox.alter_sink(sink text, url text DEFAULT NULL, topics text[] DEFAULT NULL,
        event_types text[] DEFAULT NULL, transform text DEFAULT NULL, trimming text DEFAULT NULL, max_length bigint DEFAULT NULL,
        max_age interval DEFAULT NULL, confirm text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    altered int;
    old record;
    made record;
BEGIN
    IF alter_sink.url IS NOT NULL THEN
        PERFORM outbox.check_url(alter_sink.url);
    END IF;
    PERFORM outbox.check_patterns('topics', alter_sink.topics);
    PERFORM outbox.check_patterns('event_types', alter_sink.event_types);
    SELECT t.signature, t.owner INTO made FROM outbox.check_transform(NULLIF(alter_sink.transform, 'none')) t;
    PERFORM outbox.check_trimming(COALESCE(alter_sink.trimming, 'off'), alter_sink.max_length, alter_sink.max_age);
    PERFORM outbox.check_confirm(alter_sink.confirm);
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
        IF EXISTS (SELECT FROM outbox.replay_task t WHERE t.sink_id = altered AND t.ended_at IS NULL AND t.into_stream IS NOT NULL) THEN
            RAISE EXCEPTION 'sink "%" has a replay that runs', sink
                USING ERRCODE = 'object_in_use', HINT = 'It is in outbox.stat_replay. Wait for its end, or end it with outbox.cancel_replay().';
        END IF;
        UPDATE outbox.sink_definition SET url = alter_sink.url WHERE id = altered;
    END IF;
    IF alter_sink.confirm IS NOT NULL THEN
        UPDATE outbox.sink_definition SET confirm = alter_sink.confirm WHERE id = altered;
    END IF;
    IF alter_sink.topics IS NOT NULL OR alter_sink.event_types IS NOT NULL OR alter_sink.transform IS NOT NULL THEN
        SELECT f.topics, f.event_types, f.transform, f.transform_owner INTO old FROM outbox.sink_filter f WHERE f.sink_id = altered ORDER BY f.from_ms DESC LIMIT 1;
        IF alter_sink.transform IS NULL THEN
            made.signature := old.transform;
            made.owner := old.transform_owner;
        END IF;
        INSERT INTO outbox.sink_filter (sink_id, from_ms, topics, event_types, transform, transform_owner)
        -- not before now: after a crash the newest tick may be in Redis' marker only
        SELECT altered, greatest(max(t.ms) + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), COALESCE(alter_sink.topics, old.topics),
               COALESCE(alter_sink.event_types, old.event_types), made.signature, made.owner
          FROM outbox.tick t WHERE t.sink_id = altered
        ON CONFLICT (sink_id, from_ms) DO UPDATE SET topics = EXCLUDED.topics, event_types = EXCLUDED.event_types,
            transform = EXCLUDED.transform, transform_owner = EXCLUDED.transform_owner;
    END IF;
    IF alter_sink.trimming IS NOT NULL OR alter_sink.max_length IS NOT NULL OR alter_sink.max_age IS NOT NULL THEN
        UPDATE outbox.sink_definition d
           SET trimming = COALESCE(alter_sink.trimming, d.trimming), max_length = NULLIF(COALESCE(alter_sink.max_length, d.max_length), 0),
               max_age = NULLIF(COALESCE(alter_sink.max_age, d.max_age), '0')
         WHERE d.id = altered
        RETURNING d.trimming, d.max_length, d.max_age INTO old;
        -- to turn it off, the limits need not be taken away
        PERFORM outbox.check_trimming(old.trimming,
            CASE WHEN old.trimming <> 'off' OR alter_sink.max_length > 0 THEN old.max_length END,
            CASE WHEN old.trimming <> 'off' OR alter_sink.max_age > '0' THEN old.max_age END, true);
    END IF;
    PERFORM outbox.wake(true);
END
$$;
COMMENT ON FUNCTION outbox.alter_sink(text, text, text[], text[], text, text, bigint, interval, text) IS
    'give a sink another URL, another confirm level, filters or a transform that count for events from now on, or other trimming; null leaves as it is, {*} takes everything, none takes the transform away, a limit of 0 is none';

CREATE OR REPLACE FUNCTION outbox.drop_sink(sink text, discard_dead_letters boolean DEFAULT false) RETURNS void
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
    DELETE FROM outbox.settled_letter WHERE sink_id = dropped;
    DELETE FROM outbox.replay_task WHERE sink_id = dropped;
    DELETE FROM outbox.sink_definition WHERE id = dropped RETURNING uuid INTO key;
    RAISE NOTICE 'the streams of sink "%" stay in Redis as they are, and so does its key "outbox:sink:%"', sink, key;
    PERFORM outbox.wake(true);
END
$$;
COMMENT ON FUNCTION outbox.drop_sink(text, boolean) IS
    'end a sink: events that it has not published yet it never will, and what is known of it is deleted; its streams stay';
