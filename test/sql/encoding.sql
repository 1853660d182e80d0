-- What is published is UTF-8, whatever the database's encoding.

CREATE DATABASE regress_outbox_ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_outbox_ascii
CREATE EXTENSION outbox;
-- this one knows nothing of characters and would take any bytes
\set VERBOSITY terse
SELECT outbox.emit('encoding.text', E'"\xff"');
SELECT outbox.emit('encoding.json', E'"\xff"'::json);
SELECT outbox.emit('encoding.jsonb', E'"\xff"'::jsonb);
SELECT outbox.emit('encoding.truncated', E'"gr\xc3"');
SELECT outbox.emit('encoding.surrogate', E'"\xed\xa0\x80"');
SELECT outbox.emit('encoding.overlong', E'"\xc0\xaf"');
SELECT outbox.emit('encoding.aggregate_id', '{}', aggregate_id => E'\xff');
SELECT outbox.emit('encoding.aggregate_type', '{}', aggregate_type => E'\xff');
SELECT outbox.emit('encoding.headers', '{}', headers => E'{"h": "\xff"}');
SELECT outbox.emit(E'encoding.\xff', '{}');
\set VERBOSITY default
SELECT outbox.emit('encoding.text', E'"\xff"');
SET outbox.headers = E'{"h": "\xff"}';
\set VERBOSITY terse
SELECT outbox.emit('encoding.headers', '{}');
\set VERBOSITY default
RESET outbox.headers;
SELECT count(*) FROM outbox.stored_event;
-- UTF-8 it keeps as it is
SELECT count(outbox.emit('encoding.utf8', E'"gr\xc3\xbcn"', aggregate_id => E'\xf0\x9f\x92\xb8', headers => E'{"h": "\xc3\xbc"}'));
SELECT encode(payload::bytea, 'hex') AS payload, encode(aggregate_id::bytea, 'hex') AS aggregate_id, encode(headers::bytea, 'hex') AS headers
FROM outbox.stored_event;

CREATE DATABASE regress_outbox_latin1 TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_outbox_latin1
CREATE EXTENSION outbox;
-- the worker converts: t/
SELECT count(outbox.emit('encoding.latin1', U&'"gr\00FCn"', aggregate_id => U&'\00FC', headers => U&'{"h": "\00FC"}'));
SELECT encode(convert_to(payload, 'UTF8'), 'hex') AS payload, encode(convert_to(aggregate_id, 'UTF8'), 'hex') AS aggregate_id,
    encode(convert_to(headers, 'UTF8'), 'hex') AS headers
FROM outbox.stored_event;

-- what has no place in UTF-8 is refused here, and not found by the worker
CREATE DATABASE regress_outbox_win1252 TEMPLATE template0 ENCODING 'WIN1252' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_outbox_win1252
CREATE EXTENSION outbox;
SELECT outbox.emit('encoding.text', E'"\x81"');
\set VERBOSITY sqlstate
SELECT outbox.emit('encoding.json', E'"\x81"'::json);
SELECT outbox.emit('encoding.jsonb', E'"\x81"'::jsonb);
SELECT outbox.emit('encoding.aggregate_id', '{}', aggregate_id => E'\x81');
SELECT outbox.emit('encoding.aggregate_type', '{}', aggregate_type => E'\x81');
SELECT outbox.emit('encoding.headers', '{}', headers => E'{"h": "\x81"}');
SET outbox.headers = E'{"h": "\x81"}';
SELECT outbox.emit('encoding.headers', '{}');
RESET outbox.headers;
\set VERBOSITY default
SELECT count(outbox.emit('encoding.win1252', E'"\x80"'));
SELECT encode(convert_to(payload, 'UTF8'), 'hex') AS payload FROM outbox.stored_event;
\c regression
DROP DATABASE regress_outbox_win1252;
DROP DATABASE regress_outbox_ascii;
DROP DATABASE regress_outbox_latin1;
