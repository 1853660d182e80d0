-- The same events as bench.emit records, for what is compared with it: so many, in transactions of so many. What keeps an event
-- as jsonb is given jsonb, what keeps text is given text.
CREATE PROCEDURE bench.record(statement text, first bigint, events bigint, per_transaction int DEFAULT 100)
    LANGUAGE plpgsql AS $$
DECLARE
    n bigint := first;
BEGIN
    WHILE n < first + events LOOP
        EXECUTE statement USING n, least(n + per_transaction, first + events) - 1;
        COMMIT;
        n := n + per_transaction;
    END LOOP;
END
$$;

CREATE PROCEDURE bench.insert_rows(first bigint, events bigint)
    LANGUAGE plpgsql AS $$
BEGIN
    CALL bench.record($statement$
        INSERT INTO bench.outbox (event_type, aggregate_type, aggregate_id, payload)
        SELECT 'billing.invoice.paid', 'invoice', 'i' || i % 1000, bench.payload(i)::jsonb FROM generate_series($1, $2) i
    $statement$, first, events);
END
$$;

-- an event as one logical message: the eight fields, and a control character between them that none can have in it
CREATE FUNCTION bench.write_message(payload text, aggregate_id text) RETURNS pg_lsn
    LANGUAGE sql RETURN pg_logical_emit_message(true, 'outbox', concat_ws(E'\x1f', gen_random_uuid(), 'billing.invoice.paid', 'invoice',
        aggregate_id, 1, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '{}', payload));

CREATE PROCEDURE bench.write_messages(first bigint, events bigint)
    LANGUAGE plpgsql AS $$
BEGIN
    CALL bench.record('SELECT bench.write_message(bench.payload(i), ''i'' || i % 1000) FROM generate_series($1, $2) i', first, events);
END
$$;

-- pg-transactional-outbox: the names are its own
CREATE PROCEDURE bench.insert_library_rows(first bigint, events bigint)
    LANGUAGE plpgsql AS $$
BEGIN
    CALL bench.record($statement$
        INSERT INTO public.outbox (id, aggregate_type, aggregate_id, message_type, concurrency, payload, metadata)
        SELECT gen_random_uuid(), 'invoice', 'i' || i % 1000, 'billing.invoice.paid', 'parallel', bench.payload(i)::jsonb,
               '{"version": 1, "headers": {}}'
          FROM generate_series($1, $2) i
    $statement$, first, events);
END
$$;

-- PgQ has room for four values beside the type and the data: version and headers share one
CREATE PROCEDURE bench.insert_pgq_events(first bigint, events bigint)
    LANGUAGE plpgsql AS $$
BEGIN
    CALL bench.record($statement$
        SELECT pgq.insert_event('bench', 'billing.invoice.paid', bench.payload(i), gen_random_uuid()::text, 'invoice', 'i' || i % 1000, '1 {}')
          FROM generate_series($1, $2) i
    $statement$, first, events);
END
$$;
