-- dead letters: events that a sink could not be sent

CREATE OR REPLACE FUNCTION outbox.append_again(sink_id int, event_id uuid, event_type text, topic text, aggregate_type text,
        aggregate_id text, version int, occurred_at timestamptz, headers text, payload text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_append_again';
COMMENT ON FUNCTION outbox.append_again(int, uuid, text, text, text, text, int, timestamptz, text, text) IS
    'record an event that was emitted before once more, for one sink alone';

-- Both functions below take letters out by this one: whoever deletes the row has the letter, so nobody has it twice.
CREATE OR REPLACE FUNCTION outbox.take_letters(event_id uuid, sink text, topic text, event_type text, since timestamptz,
        until timestamptz, outcome text) RETURNS SETOF outbox.dead_letter
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    wanted int;
BEGIN
    IF num_nonnulls(event_id, take_letters.sink, topic, event_type, since, until) = 0 THEN
        RAISE EXCEPTION 'it must be said which dead letters are meant'
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Give an event_id or a filter, for example sink => ''default'' for all of a sink. They are in outbox.dead_letter.';
    END IF;
    IF take_letters.sink IS NOT NULL THEN
        SELECT s.id INTO wanted FROM outbox.sink s WHERE s.name = take_letters.sink;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'sink "%" does not exist', take_letters.sink
                USING ERRCODE = 'undefined_object', HINT = 'The sinks are listed in outbox.sink.';
        END IF;
    END IF;
    RETURN QUERY
    WITH taken AS (
        DELETE FROM outbox.dead_letter d
         WHERE (wanted IS NULL OR d.sink_id = wanted)
           AND (take_letters.event_id IS NULL OR d.event_id = take_letters.event_id)
           AND (take_letters.topic IS NULL OR d.topic = take_letters.topic)
           AND (take_letters.event_type IS NULL OR d.event_type = take_letters.event_type)
           AND (since IS NULL OR d.dead_at >= since) AND (until IS NULL OR d.dead_at < until)
        RETURNING d.*),
    noted AS (
        INSERT INTO outbox.settled_letter (sink_id, event_id, seq, outcome, position, dead_at)
        SELECT t.sink_id, t.event_id, t.seq, take_letters.outcome, t.position, t.dead_at FROM taken t)
    SELECT t.* FROM taken t
     ORDER BY t.sink_id, split_part(t.position, '-', 1)::numeric, split_part(t.position, '-', 2)::numeric;
    IF NOT FOUND AND take_letters.event_id IS NOT NULL THEN
        RAISE EXCEPTION 'event % is no dead letter', take_letters.event_id
            USING ERRCODE = 'no_data_found', HINT = 'The dead letters are in outbox.dead_letter.';
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.take_letters(uuid, text, text, text, timestamptz, timestamptz, text) IS
    'take dead letters out of outbox.dead_letter, in the order of their positions';

CREATE OR REPLACE FUNCTION outbox.redrive(event_id uuid DEFAULT NULL, sink text DEFAULT NULL, topic text DEFAULT NULL,
        event_type text DEFAULT NULL, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    letter outbox.dead_letter;
    redriven bigint := 0;
BEGIN
    FOR letter IN SELECT * FROM outbox.take_letters(redrive.event_id, redrive.sink, redrive.topic, redrive.event_type, redrive.since,
                                                    redrive.until, 'redriven') LOOP
        -- one after the other: their sequence numbers, and so their positions, are in this order
        PERFORM outbox.append_again(letter.sink_id, letter.event_id, letter.event_type, letter.topic, letter.aggregate_type,
                                    letter.aggregate_id, letter.version, letter.occurred_at, letter.headers, letter.payload);
        redriven := redriven + 1;
    END LOOP;
    RETURN redriven;
END
$$;
COMMENT ON FUNCTION outbox.redrive(uuid, text, text, text, timestamptz, timestamptz) IS
    'append dead letters to the ends of their streams, in their order, when the transaction commits; since and until are those of dead_at. Returns how many';

CREATE OR REPLACE FUNCTION outbox.discard(event_id uuid DEFAULT NULL, sink text DEFAULT NULL, topic text DEFAULT NULL,
        event_type text DEFAULT NULL, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FROM outbox.take_letters(discard.event_id, discard.sink, discard.topic, discard.event_type, discard.since,
                                             discard.until, 'discarded')
$$;
COMMENT ON FUNCTION outbox.discard(uuid, text, text, text, timestamptz, timestamptz) IS
    'forget dead letters: their events are never published in that sink; since and until are those of dead_at. Returns how many';
