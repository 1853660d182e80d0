-- what is retained, and what holds it back

CREATE OR REPLACE FUNCTION outbox.retention_state(OUT sink_id int, OUT looked_at timestamptz, OUT generation bigint, OUT held_back_by text,
        OUT held_back_since timestamptz)
    RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'outbox_retention_state';
COMMENT ON FUNCTION outbox.retention_state() IS 'what each worker of this database found when it looked last whether old events can be dropped';

-- generation g lives in partition g % 8; without a row the generation is 0
CREATE OR REPLACE VIEW outbox.stat_retention AS
    SELECT p.partition, g.generation, g.started_at,
           (SELECT n.started_at FROM outbox.ring n WHERE n.generation = g.generation + 1) AS ended_at,
           pg_catalog.pg_total_relation_size(t.events) + pg_catalog.pg_total_relation_size(t.ticks) AS bytes,
           CASE WHEN pg_catalog.pg_relation_size(t.events) > 0 THEN
               (SELECT GREATEST(pg_catalog.pg_stat_get_live_tuples(c.oid), c.reltuples::bigint, 0) FROM pg_catalog.pg_class c WHERE c.oid = t.events)
               ELSE 0 END AS events,
           CASE WHEN g.generation = r.current THEN 'current'
                WHEN pg_catalog.pg_relation_size(t.events) = 0 AND pg_catalog.pg_relation_size(t.ticks) = 0 THEN 'empty'
                WHEN g.generation = w.generation THEN 'held back'
                ELSE 'retained' END AS state,
           CASE WHEN g.generation = w.generation THEN w.held_back_by END AS held_back_by,
           CASE WHEN g.generation = w.generation THEN w.held_back_since END AS held_back_since
    FROM pg_catalog.generate_series(0, 7) AS p(partition)
    CROSS JOIN LATERAL (SELECT pg_catalog.to_regclass('outbox.event_' || p.partition) AS events,
                               pg_catalog.to_regclass('outbox.tick_' || p.partition) AS ticks) t
    CROSS JOIN (SELECT COALESCE(max(generation), 0) AS current FROM outbox.ring) r
    LEFT JOIN LATERAL (SELECT k.generation, (SELECT o.started_at FROM outbox.ring o WHERE o.generation = k.generation) AS started_at
                         FROM (SELECT r.current - (r.current - p.partition + 8) % 8 AS generation) k
                        WHERE k.generation >= 0) g ON true
    LEFT JOIN LATERAL (SELECT s.generation, s.held_back_by, s.held_back_since FROM outbox.retention_state() s
                        ORDER BY s.looked_at DESC LIMIT 1) w ON true;
COMMENT ON VIEW outbox.stat_retention IS 'the partitions that events are retained in: how old, how large, and what keeps the oldest from being dropped';
COMMENT ON COLUMN outbox.stat_retention.partition IS 'its number: events are in outbox.event_<n>, ticks in outbox.tick_<n>';
COMMENT ON COLUMN outbox.stat_retention.generation IS 'counts the partitions in the order of their use; null: it was not used yet';
COMMENT ON COLUMN outbox.stat_retention.started_at IS 'when new events began to go into it';
COMMENT ON COLUMN outbox.stat_retention.ended_at IS
    'when they began to go into the next one; of transactions that were open then, younger events may be in it. Null: they still go into it';
COMMENT ON COLUMN outbox.stat_retention.bytes IS 'what its events and ticks take on disk, with their indexes';
COMMENT ON COLUMN outbox.stat_retention.events IS 'about how many events it holds';
COMMENT ON COLUMN outbox.stat_retention.state IS
    'current (new events go into it), retained, held back (it could be dropped but for what held_back_by says) or empty';
COMMENT ON COLUMN outbox.stat_retention.held_back_by IS 'the sink, the transaction, the prepared transaction or the snapshot that needs it';
COMMENT ON COLUMN outbox.stat_retention.held_back_since IS
    'when that transaction began or was prepared, that stream was refused first, or that sink confirmed something last';
