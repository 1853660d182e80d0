-- what each column is: one of a name is the same thing everywhere, unless it was said otherwise where its table or view is made

DO $$
DECLARE
    described record;
BEGIN
    FOR described IN
        SELECT c.oid::pg_catalog.regclass AS relation, a.attname AS name, v.text
          FROM (VALUES
            ('id', 'number of the sink, given once'),
            ('sink_id', 'the sink, as in outbox.sink.id'),
            ('sink', 'name of the sink'),
            ('name', 'what it is called'),
            ('uuid', 'identity of the sink in Redis'),
            ('anchor', 'the cluster and database that it is from: outbox.anchor()'),
            ('paused', 'whether outbox.pause() was called'),
            ('take_over', 'whether the next worker may displace one of another server'),
            ('url', 'where it leads, without a password'),
            ('stream', 'key of the stream in Redis'),
            ('topics', 'patterns of the topics that it takes; null: all'),
            ('event_types', 'patterns of the event types that it takes; null: all'),
            ('start_n', 'with start_ms: the first position that belongs to the sink'),
            ('from_ms', 'the first tick that it counts for'),
            ('created_at', 'when it was made'),
            ('event_id', 'identity of the event, which outbox.emit() returned'),
            ('event_type', 'what happened: module.aggregate.action'),
            ('topic', 'where it is routed; null in a partition: the first segment of the event type'),
            ('aggregate_type', 'what kind of thing it is about'),
            ('aggregate_id', 'which one'),
            ('version', 'version of the event type''s contract'),
            ('occurred_at', 'when it happened, as the emitter says'),
            ('headers', 'JSON object of strings, such as a trace context'),
            ('payload', 'what happened, as JSON'),
            ('status', 'what became of it'),
            ('seq', 'order of emission: it decides within one batch'),
            ('xid', 'the transaction that emitted it'),
            ('ms', 'first half of the position <ms>-<n>: the tick'),
            ('n', 'second half of the position <ms>-<n>: the place in the batch'),
            ('cursor_ms', 'with cursor_n: how far the sink was when the tick was recorded'),
            ('cursor_n', 'with cursor_ms: how far the sink was when the tick was recorded'),
            ('snapshot', 'what the tick sees'),
            ('generation', 'counts the partitions in the order of their use'),
            ('started_at', 'when it began'),
            ('incarnation', 'what the worker calls itself in Redis'),
            ('recorded_at', 'when it was written down'),
            ('appended', 'entries that were appended to it, as Redis should count them'),
            ('held_ms', 'with held_n: the first event that is held back; null: none is'),
            ('held_n', 'with held_ms: the first event that is held back'),
            ('tried_ms', 'with tried_n: the last event of the attempts that are counted'),
            ('tried_n', 'with tried_ms: the last event of the attempts that are counted'),
            ('attempts', 'how often it was tried'),
            ('retry_at', 'when it is tried again'),
            ('failed_at', 'when it was refused first'),
            ('last_error', 'what the last answer was that was no success'),
            ('last_error_at', 'when that was'),
            ('released', 'number of the repair that appended to it last what had been held'),
            ('upto_n', 'the last place in the batch that is meant'),
            ('to_ms', 'the tick whose positions they have instead'),
            ('moved_at', 'when that was recorded'),
            ('position', 'entry ID <ms>-<n>'),
            ('key', 'a dedupe key that was used'),
            ('deliver_at', 'when it is to be delivered'),
            ('partition', 'number of the partition'),
            ('emitted_at', 'when outbox.emit() was called'),
            ('since_ms', 'with since_n: the first position that is replayed'),
            ('since_n', 'with since_ms: the first position that is replayed'),
            ('until_ms', 'with until_n: the last position that is replayed'),
            ('until_n', 'with until_ms: the last position that is replayed'),
            ('until', 'the last position that is replayed'),
            ('rate', 'events a second at most; null: no limit'),
            ('done', 'events that were appended'),
            ('total', 'events that there are to append; null: not counted yet'),
            ('dropped_ms', 'events up to this time were dropped by retention before they could be read'),
            ('created_by', 'who asked for it'),
            ('ended_at', 'when it ended'),
            ('outcome', 'redriven or discarded'),
            ('dead_at', 'when it was given up'),
            ('settled_at', 'when that was'),
            ('max_length', 'entries that are kept in each stream; null: no limit'),
            ('max_age', 'how long entries are kept in each stream; null: no limit'),
            ('confirmed_at', 'when the sink confirmed something last'),
            ('tick_ms', 'the batch that is being sent'),
            ('passed_ms', 'batches up to here are done as a whole'),
            ('state', 'what the worker does'),
            ('pid', 'the process'),
            ('since', 'since when'),
            ('batches', 'batches that were sent as a whole since the worker started'),
            ('errors', 'errors since the worker started'),
            ('dead_letters', 'events that were given up: outbox.dead_letter'),
            ('worker_pid', 'the process that compares'),
            ('events', 'events that have been compared'),
            ('entries', 'entries that have been compared')
          ) v(name, text)
          JOIN pg_catalog.pg_attribute a ON a.attname OPERATOR(pg_catalog.=) v.name AND a.attnum OPERATOR(pg_catalog.>) 0
          JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) a.attrelid AND c.relkind IN ('r', 'v')
           AND c.relnamespace OPERATOR(pg_catalog.=) 'outbox'::pg_catalog.regnamespace
         WHERE pg_catalog.col_description(a.attrelid, a.attnum) IS NULL
    LOOP
        EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.%I IS %L', described.relation, described.name, described.text);
    END LOOP;
    -- roles belong to the cluster: another database may have said it already
    FOR described IN
        SELECT v.name, v.text FROM (VALUES
            ('outbox_worker', 'owns what belongs to the extension outbox; nobody logs in as it'),
            ('outbox_emitter', 'may call outbox.emit()'),
            ('outbox_reader', 'may read the views of outbox, and so all events'),
            ('outbox_admin', 'may create, alter, drop, pause, resume and verify sinks of outbox')
          ) v(name, text)
          JOIN pg_catalog.pg_roles r ON r.rolname OPERATOR(pg_catalog.=) v.name
         WHERE pg_catalog.shobj_description(r.oid, 'pg_authid') IS NULL
    LOOP
        EXECUTE pg_catalog.format('COMMENT ON ROLE %I IS %L', described.name, described.text);
    END LOOP;
END
$$;
