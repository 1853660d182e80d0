-- comparing the streams with what was committed

CREATE OR REPLACE FUNCTION outbox.compare(sink text, since timestamptz, until timestamptz,
        OUT finding text, OUT topic text, OUT "position" text, OUT event_id uuid, OUT belongs_topic text,
        OUT belongs_position text, OUT entries bigint, OUT detail text)
    RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_compare';
COMMENT ON FUNCTION outbox.compare(text, timestamptz, timestamptz) IS
    'what outbox.verify() finds, before an event that is missing in one place is recognised in another';

-- An entry that nothing explains may be that of an event that is missing where it should be.
CREATE OR REPLACE FUNCTION outbox.verify(sink text DEFAULT 'default', since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL)
    RETURNS TABLE (finding text, stream text, expected text, found text, event_id uuid, entries bigint, detail text)
    LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
    WITH compared AS MATERIALIZED (
        SELECT c.*, row_number() OVER (PARTITION BY c.finding, c.event_id ORDER BY c.ordinality) AS nth
          FROM outbox.compare(verify.sink, verify.since, verify.until) WITH ORDINALITY c)
    SELECT CASE WHEN e.finding IS NULL THEN m.finding WHEN m.finding IS NULL THEN 'extra' ELSE 'misplaced' END,
           replace(k.stream, '%t', COALESCE(m.topic, e.topic)),
           m."position", e."position", COALESCE(m.event_id, e.event_id), COALESCE(m.entries, e.entries),
           CASE WHEN m.finding IS NULL AND e.belongs_position IS NOT NULL
                    THEN e.detail || ': ' || e.belongs_position || ' in ' || replace(k.stream, '%t', e.belongs_topic)
                WHEN e.finding IS NULL THEN m.detail
                WHEN m.finding IS NULL THEN e.detail
                WHEN m.topic <> e.topic THEN 'the event is in ' || replace(k.stream, '%t', e.topic) END
      FROM (SELECT * FROM compared c WHERE c.finding <> 'extra') m
      FULL JOIN (SELECT * FROM compared c WHERE c.finding = 'extra') e ON m.event_id = e.event_id AND m.nth = e.nth
     CROSS JOIN (SELECT s.stream FROM outbox.sink s WHERE s.name = verify.sink) k
     ORDER BY COALESCE(m.topic, e.topic) COLLATE "C",
              split_part(COALESCE(m."position", e."position"), '-', 1)::numeric,
              split_part(COALESCE(m."position", e."position"), '-', 2)::numeric
$$;
COMMENT ON FUNCTION outbox.verify(text, timestamptz, timestamptz) IS
    'compare what was committed and confirmed with what the streams hold; a row for each missing, misplaced or extra entry, and for what was trimmed. No rows: they are equal';

CREATE OR REPLACE FUNCTION outbox.verify_state(OUT sink_id int, OUT pid int, OUT worker_pid int, OUT started_at timestamptz,
        OUT ticks_total bigint, OUT ticks bigint, OUT upto_ms bigint, OUT events bigint, OUT entries bigint,
        OUT findings bigint)
    RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'outbox_verify_state';
COMMENT ON FUNCTION outbox.verify_state() IS 'how far each outbox.verify() of this database is, from shared memory';

CREATE OR REPLACE VIEW outbox.stat_verify AS
    SELECT s.name AS sink, v.pid, v.worker_pid, v.started_at, v.ticks_total, v.ticks,
           CASE WHEN v.upto_ms > 0 THEN pg_catalog.to_timestamp(v.upto_ms / 1000.0) END AS upto,
           v.events, v.entries, v.findings
    FROM outbox.verify_state() v
    LEFT JOIN outbox.sink s ON s.id = v.sink_id;
COMMENT ON VIEW outbox.stat_verify IS 'how far each outbox.verify() is that runs in this database';
COMMENT ON COLUMN outbox.stat_verify.pid IS 'the backend that waits for it; to cancel that ends it';
COMMENT ON COLUMN outbox.stat_verify.ticks_total IS 'ticks that will be compared';
COMMENT ON COLUMN outbox.stat_verify.ticks IS 'ticks that have been, as far as the database''s side is concerned';
COMMENT ON COLUMN outbox.stat_verify.upto IS 'the time of the last tick whose entries have been compared';
COMMENT ON COLUMN outbox.stat_verify.findings IS 'found so far, before missing events are recognised elsewhere';
