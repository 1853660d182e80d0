-- Delayed events: what is taken and what is refused, where they are seen, and taking them back. That they are delivered, and when,
-- is for test/t/160_delayed.pl.

\set SHOW_CONTEXT never
CREATE VIEW waiting AS
    SELECT event_type, topic, aggregate_type, aggregate_id, version, headers, payload, deliver_at - emitted_at > '55 min' AS later,
           occurred_at <= emitted_at AS occurred
      FROM outbox.delayed_event WHERE event_type LIKE 'delayed.%' ORDER BY seq;

SELECT outbox.emit('delayed.first', '{"n": 1}', deliver_at => now() + '1 hour') AS first \gset
SELECT count(outbox.emit('delayed.second', '{"n": 2}'::json, aggregate_id => 'a', aggregate_type => 'thing', version => 2, headers => '{"h": 1}',
    topic => 'elsewhere', occurred_at => '2020-01-01 00:00+00', event_id => '01a1fd51-24fc-713f-8abb-bbffb042aade', deliver_at => now() + '2 days'));
SELECT count(outbox.emit('delayed.third', '{"n": 3}'::jsonb, deliver_at => now() + '9 years'));
SELECT * FROM waiting;
-- each in the partition of its time
SELECT event_type, CASE WHEN partition < 8 THEN 'hour' WHEN partition < 16 THEN 'day' ELSE 'far' END AS partition
  FROM outbox.delayed WHERE event_type LIKE 'delayed.%' ORDER BY seq;
-- they are no events yet
SELECT count(*) FROM outbox.event WHERE event_type LIKE 'delayed.%';
SELECT events >= 3 AS events, next_due > now() AS next_due, overdue_seconds FROM outbox.stat_delayed;

-- null and what has passed: at once
SELECT count(outbox.emit('delayed.now', '0', deliver_at => at)) FROM (VALUES (NULL), (now() - '1 s'::interval), (now())) v(at);
SELECT event_type, count(*) FROM outbox.event WHERE event_type LIKE 'delayed.%' GROUP BY event_type;

-- refused
SELECT outbox.emit('delayed.never', '0', deliver_at => 'infinity');
SELECT outbox.emit('delayed.never', '0', deliver_at => '-infinity');
SELECT outbox.emit('delayed.never', '0', deliver_at => now() + '11 years');
SELECT outbox.emit('delayed', '0', deliver_at => now() + '1 hour');

-- with its transaction, or not at all
BEGIN;
SELECT count(outbox.emit('delayed.rolled_back', '0', deliver_at => now() + '1 hour'));
SAVEPOINT s;
SELECT count(outbox.emit('delayed.rolled_back', '0', deliver_at => now() + '1 hour'));
ROLLBACK TO s;
ROLLBACK;
SELECT event_type FROM waiting;

-- taking back: once, and with the transaction that does
BEGIN;
SELECT outbox.cancel(:'first');
SELECT outbox.cancel(:'first');
ROLLBACK;
SELECT outbox.cancel(:'first');
SELECT outbox.cancel(:'first');
SELECT outbox.cancel('01a1fd51-24fc-713f-8abb-bbffb042aade');
SELECT outbox.cancel('00000000-0000-0000-0000-000000000000');
SELECT outbox.cancel(NULL);
SELECT event_type FROM waiting;
-- also in the transaction that emits
BEGIN;
SELECT outbox.cancel(outbox.emit('delayed.regretted', '0', deliver_at => now() + '1 hour'));
COMMIT;
-- an event that is not delayed is there for good
SELECT outbox.cancel(event_id) FROM outbox.event WHERE event_type = 'delayed.now' LIMIT 1;
SELECT event_type FROM waiting;
SELECT outbox.cancel(event_id) FROM outbox.delayed_event WHERE event_type = 'delayed.third';

-- who may
CREATE ROLE regress_delayed_emitter IN ROLE outbox_emitter;
CREATE ROLE regress_delayed_reader IN ROLE outbox_reader;
SET ROLE regress_delayed_emitter;
SELECT outbox.cancel(outbox.emit('delayed.by_emitter', '0', deliver_at => now() + '1 hour'));
SELECT count(*) FROM outbox.delayed_event;
SET ROLE regress_delayed_reader;
SELECT count(*) FROM outbox.delayed_event;
SELECT outbox.cancel('00000000-0000-0000-0000-000000000000');
RESET ROLE;
DROP ROLE regress_delayed_emitter, regress_delayed_reader;
DROP VIEW waiting;
