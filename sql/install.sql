-- outbox: the transactional outbox inside PostgreSQL. This file is the head of the install script; it knows nothing of Redis.
-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION outbox" to load this file. \quit

-- roles

-- outbox_worker owns everything and is nobody's login; the others are granted to people and services.
-- Roles belong to the cluster, so another database may have made them already.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['outbox_worker', 'outbox_emitter', 'outbox_reader', 'outbox_admin'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) wanted) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
        ELSIF (SELECT rolsuper OR rolbypassrls OR rolcreaterole FROM pg_catalog.pg_roles
                WHERE rolname OPERATOR(pg_catalog.=) wanted) THEN
            RAISE EXCEPTION 'role "%" has more privileges than outbox may give it', wanted
                USING ERRCODE = 'invalid_grant_operation',
                      HINT = 'Rename that role, or take SUPERUSER, BYPASSRLS and CREATEROLE from it.';
        END IF;
    END LOOP;
    -- it owns all events: nobody may log in as it or act for it, and it may not act for anybody
    IF (SELECT rolcanlogin OR rolreplication OR rolcreatedb FROM pg_catalog.pg_roles
         WHERE rolname OPERATOR(pg_catalog.=) 'outbox_worker')
       OR EXISTS (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r
                    ON r.rolname OPERATOR(pg_catalog.=) 'outbox_worker'
                   AND (m.member OPERATOR(pg_catalog.=) r.oid OR m.roleid OPERATOR(pg_catalog.=) r.oid)) THEN
        RAISE EXCEPTION 'role "outbox_worker" has more privileges than outbox may give it'
            USING ERRCODE = 'invalid_grant_operation',
                  HINT = 'Take LOGIN, REPLICATION, CREATEDB and every membership from it, in both directions.';
    END IF;
END
$$;

CREATE SCHEMA outbox;
COMMENT ON SCHEMA outbox IS 'transactional outbox: events committed here are appended to Redis Streams, exactly once and in order';
