-- The table that one writes by hand instead.
CREATE TABLE bench.outbox (
    id bigserial PRIMARY KEY,
    event_id uuid NOT NULL DEFAULT gen_random_uuid(),
    event_type text NOT NULL,
    aggregate_type text NOT NULL DEFAULT '',
    aggregate_id text NOT NULL DEFAULT '',
    version int NOT NULL DEFAULT 1,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    headers jsonb NOT NULL DEFAULT '{}',
    payload jsonb NOT NULL,
    published_at timestamptz
);
CREATE INDEX outbox_pending ON bench.outbox (id) WHERE published_at IS NULL;
