-- the confirm level of a sink: how safe an entry must be before it counts as published

CREATE OR REPLACE FUNCTION outbox.check_confirm(confirm text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF confirm !~ '^(memory|fsync|replicas\([1-9][0-9]?\))$' THEN
        RAISE EXCEPTION 'invalid confirm level "%"', left(regexp_replace(confirm, '[^ -~]', '?', 'g'), 60)
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Use ''memory'', ''fsync'', or ''replicas(n)'' with n from 1 to 99.';
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.check_confirm(text) IS 'an error unless it is a confirm level';
