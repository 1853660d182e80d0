-- what the workers see of the consumers of their streams

CREATE OR REPLACE FUNCTION outbox.redis_state(OUT sink_id int, OUT trimmed bigint, OUT can_evict boolean)
    RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'outbox_redis_state';
COMMENT ON FUNCTION outbox.redis_state() IS 'what the workers of this database say of their Redis, from shared memory';

CREATE OR REPLACE FUNCTION outbox.consumer_state(OUT sink_id int, OUT topic text, OUT consumer_group text, OUT lag bigint,
        OUT pending bigint, OUT oldest_pending_ms bigint, OUT consumers bigint, OUT dead_letters bigint, OUT refreshed_at timestamptz)
    RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'outbox_consumer_state';
COMMENT ON FUNCTION outbox.consumer_state() IS 'the consumer groups that the workers of this database have seen, from shared memory';

CREATE OR REPLACE VIEW outbox.stat_consumer AS
    SELECT s.name AS sink, pg_catalog.replace(s.stream, '%t', c.topic) AS stream, c.consumer_group, c.lag, c.pending,
           CASE WHEN c.oldest_pending_ms IS NOT NULL
                THEN GREATEST(c.refreshed_at - pg_catalog.to_timestamp(c.oldest_pending_ms / 1000.0), '0') END AS oldest_pending_age,
           c.consumers, c.dead_letters, c.refreshed_at
    FROM outbox.sink s
    JOIN outbox.consumer_state() c ON c.sink_id = s.id;
COMMENT ON VIEW outbox.stat_consumer IS 'the consumer groups of each stream, as its sink''s worker saw them last';
COMMENT ON COLUMN outbox.stat_consumer.consumer_group IS 'its name; bytes that are not printable ASCII as \xNN';
COMMENT ON COLUMN outbox.stat_consumer.lag IS 'entries of the stream that the group was not given yet; null where Redis cannot tell';
COMMENT ON COLUMN outbox.stat_consumer.pending IS 'entries that it was given and has not acknowledged';
COMMENT ON COLUMN outbox.stat_consumer.oldest_pending_age IS
    'how long ago the oldest of them was recorded for the stream, however often it was delivered since; null when nothing is pending';
COMMENT ON COLUMN outbox.stat_consumer.consumers IS 'consumers that the group has, whether they are alive or not';
COMMENT ON COLUMN outbox.stat_consumer.dead_letters IS 'entries of the group''s stream of dead letters, <stream>:dlq:<group>';
COMMENT ON COLUMN outbox.stat_consumer.refreshed_at IS 'when the worker looked';
