-- delayed events

CREATE OR REPLACE FUNCTION outbox.cancel(event_id uuid) RETURNS boolean
    LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF cancel.event_id IS NULL THEN
        RAISE EXCEPTION 'event id must not be null'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Pass the id that outbox.emit() returned.';
    END IF;
    DELETE FROM outbox.delayed d WHERE d.event_id = cancel.event_id;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION outbox.cancel(uuid) IS
    'take back a delayed event, when this transaction commits; false when there is none with that id, or no more';

CREATE OR REPLACE VIEW outbox.delayed_event AS
    SELECT d.event_id, d.event_type, t.topic, d.aggregate_type, d.aggregate_id, d.version, d.occurred_at, d.deliver_at, d.emitted_at,
           d.headers::pg_catalog.json AS headers, d.payload::pg_catalog.json AS payload, d.seq
    FROM outbox.delayed d
    CROSS JOIN LATERAL (SELECT COALESCE(d.topic, pg_catalog.split_part(d.event_type, '.', 1)) AS topic) t;
COMMENT ON VIEW outbox.delayed_event IS
    'one row for each delayed event that has not been delivered: when it has, it is in outbox.event instead';
COMMENT ON COLUMN outbox.delayed_event.deliver_at IS 'when it is due: from then on it is an event like others';
COMMENT ON COLUMN outbox.delayed_event.emitted_at IS 'when outbox.emit() was called';
COMMENT ON COLUMN outbox.delayed_event.seq IS 'order of the events that are due at the same time';

CREATE OR REPLACE VIEW outbox.stat_delayed AS
    SELECT count(*) AS events, pg_catalog.min(deliver_at) AS next_due,
           GREATEST(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - pg_catalog.min(deliver_at)), 0) AS overdue_seconds
    FROM outbox.delayed;
COMMENT ON VIEW outbox.stat_delayed IS 'how many delayed events there are, and how late they are';
COMMENT ON COLUMN outbox.stat_delayed.next_due IS 'when the first of them is due; null when there is none';
COMMENT ON COLUMN outbox.stat_delayed.overdue_seconds IS
    'for how long it should have been delivered; 0 when it is not due, and null when there is none';
