-- emitting

CREATE OR REPLACE FUNCTION outbox.emit(event_type text, payload text, aggregate_id text DEFAULT NULL,
        aggregate_type text DEFAULT NULL, version int DEFAULT 1, headers jsonb DEFAULT NULL,
        topic text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL,
        deliver_at timestamptz DEFAULT NULL, dedupe_key text DEFAULT NULL)
    RETURNS uuid LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_emit_text';
COMMENT ON FUNCTION outbox.emit(text, text, text, text, int, jsonb, text, timestamptz, uuid, timestamptz, text) IS
    'record an event in this transaction, to be published if and only if it commits; returns its id, or that of the first event with the dedupe key';

CREATE OR REPLACE FUNCTION outbox.emit(event_type text, payload json, aggregate_id text DEFAULT NULL,
        aggregate_type text DEFAULT NULL, version int DEFAULT 1, headers jsonb DEFAULT NULL,
        topic text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL,
        deliver_at timestamptz DEFAULT NULL, dedupe_key text DEFAULT NULL)
    RETURNS uuid LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_emit_json';
COMMENT ON FUNCTION outbox.emit(text, json, text, text, int, jsonb, text, timestamptz, uuid, timestamptz, text) IS
    'record an event in this transaction, to be published if and only if it commits; returns its id, or that of the first event with the dedupe key';

CREATE OR REPLACE FUNCTION outbox.emit(event_type text, payload jsonb, aggregate_id text DEFAULT NULL,
        aggregate_type text DEFAULT NULL, version int DEFAULT 1, headers jsonb DEFAULT NULL,
        topic text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL,
        deliver_at timestamptz DEFAULT NULL, dedupe_key text DEFAULT NULL)
    RETURNS uuid LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_emit_jsonb';
COMMENT ON FUNCTION outbox.emit(text, jsonb, text, text, int, jsonb, text, timestamptz, uuid, timestamptz, text) IS
    'record an event in this transaction, to be published if and only if it commits; returns its id, or that of the first event with the dedupe key';
