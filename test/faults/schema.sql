-- What a round of faults keeps in the database: the aggregates that change, the truth about every event that was committed,
-- and the effects of the consumers with an inbox.
-- topics: alpha beta gamma delta
CREATE SCHEMA torture;

-- its row is locked by whoever changes the aggregate, so versions are in the order of the commits
CREATE TABLE torture.aggregate (
    name text PRIMARY KEY,
    version bigint NOT NULL DEFAULT 0
);

-- written in the transaction that emits: what is here was committed, and nothing else was
CREATE TABLE torture.truth (
    op uuid NOT NULL,
    k int NOT NULL,
    event_id uuid NOT NULL,
    aggregate text NOT NULL,
    version bigint NOT NULL,
    digest text NOT NULL,
    kind text NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
COMMENT ON COLUMN torture.truth.digest IS 'SHA-256, in hexadecimal, of the headers and the payload as they must be in the stream';

-- without a unique constraint, so that an effect that comes twice is seen
CREATE TABLE torture.effect (
    event_id uuid NOT NULL,
    aggregate text NOT NULL,
    version bigint NOT NULL,
    consumer text NOT NULL, -- the group
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
