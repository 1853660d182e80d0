-- versions

CREATE OR REPLACE FUNCTION outbox.begin_update(version text) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'outbox_begin_update';
COMMENT ON FUNCTION outbox.begin_update(text) IS
    'for ALTER EXTENSION outbox UPDATE: an error unless the server''s library is of that version; the workers wait until the transaction ends';
