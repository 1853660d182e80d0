-- The events of the benchmark: a payload of 200 bytes, one of a thousand aggregates, one topic.
CREATE SCHEMA bench;

CREATE FUNCTION bench.payload(n bigint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
    '{"invoice":"' || lpad(n::text, 12, '0') || '","amount":"12.50","currency":"EUR","note":"' || repeat('thank you for your order; ', 4)
        || 'please pay within 14 days."}';

-- so many events, in transactions of so many
CREATE PROCEDURE bench.emit(first bigint, events bigint, per_transaction int DEFAULT 100)
    LANGUAGE plpgsql AS $$
DECLARE
    n bigint := first;
BEGIN
    WHILE n < first + events LOOP
        PERFORM outbox.emit('billing.invoice.paid', bench.payload(i), aggregate_id => 'i' || i % 1000,
                    aggregate_type => 'invoice', headers => '{}')
           FROM generate_series(n, least(n + per_transaction, first + events) - 1) i;
        COMMIT;
        n := n + per_transaction;
    END LOOP;
END
$$;

-- what is changed when an event is emitted
CREATE TABLE bench.invoice (
    id bigserial PRIMARY KEY,
    number bigint NOT NULL,
    customer text NOT NULL,
    amount numeric NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
