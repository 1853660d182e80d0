-- Many events of one transaction, of forty aggregates that nobody else touches, for the moment before a fault.
CREATE FUNCTION torture.burst(op uuid, name text, topic text, many int) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    aggregate text;
    headers jsonb;
    payload text;
    id uuid;
BEGIN
    FOR i IN 1..many LOOP
        aggregate := name || '-' || i % 40;
        headers := jsonb_build_object('aggregate', aggregate, 'version', (i + 39) / 40);
        payload := to_json(repeat(md5(i::text), i % 20))::text;
        id := outbox.emit(topic || '.burst', payload, aggregate_id => aggregate, headers => headers);
        INSERT INTO torture.truth (op, k, event_id, aggregate, version, digest, kind)
        VALUES (op, i, id, aggregate, (i + 39) / 40,
                encode(sha256(convert_to(headers::text || payload, 'UTF8')), 'hex'), 'burst');
    END LOOP;
END
$$;
