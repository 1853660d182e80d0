-- The hand-written table's life: rows are written, and marked when they are published.

CREATE PROCEDURE bench.write(first bigint, events bigint, per_transaction int)
    LANGUAGE plpgsql AS $$
DECLARE
    n bigint := first;
BEGIN
    WHILE n < first + events LOOP
        INSERT INTO bench.outbox (event_type, payload, aggregate_id, aggregate_type, headers)
        SELECT 'billing.invoice.paid', bench.payload(i)::jsonb, 'i' || i % 1000, 'invoice', '{}'
          FROM generate_series(n, least(n + per_transaction, first + events) - 1) i;
        COMMIT;
        n := n + per_transaction;
    END LOOP;
END
$$;

CREATE PROCEDURE bench.publish(per_transaction int)
    LANGUAGE plpgsql AS $$
DECLARE
    done bigint;
    behind bigint := 0;
BEGIN
    LOOP
        WITH batch AS (SELECT id FROM bench.outbox WHERE published_at IS NULL AND id > behind ORDER BY id LIMIT per_transaction FOR UPDATE),
             marked AS (UPDATE bench.outbox o SET published_at = now() FROM batch WHERE o.id = batch.id RETURNING o.id)
        SELECT count(*), max(id) INTO done, behind FROM marked;
        COMMIT;
        EXIT WHEN done = 0;
    END LOOP;
END
$$;
