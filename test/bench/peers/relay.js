'use strict';
// A relay as one writes it with care: takes a batch of the outbox table with FOR UPDATE SKIP LOCKED, appends it to the stream in
// one pipeline, and deletes it (or marks it as published) in the same transaction, so that a crash sends again and loses nothing.
// A statement-level trigger's NOTIFY wakes it, and it polls in case one was missed.
//
// What made it faster, each measured: one statement that takes and deletes; BEGIN and that statement in one round trip; rows as
// arrays of text, no column parsed; two connections, so that PostgreSQL takes the next batch while this one is encoded and
// appended. They take in turn, which keeps the order. Nobody waits for the log: a commit that is lost is a batch sent again.

const pg = require('pg');
const Redis = require('ioredis');
const { options, postgres, redis: address, meter } = require('./options');

const values = options({
  batch: { type: 'string', default: '1000', help: 'events taken at once' },
  lanes: { type: 'string', default: '2', help: 'connections that take batches in turn' },
  done: { type: 'string', default: 'delete', help: 'what is done with an event that is sent: delete or mark' },
  poll: { type: 'string', default: '1000', help: 'ms between two looks without a notification' },
});
const batch = Number(values.batch);
const wanted = Number(values.events);
const { stream } = values;

const ids = 'SELECT id FROM bench.outbox WHERE published_at IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED';
const columns = 'event_id, event_type, aggregate_type, aggregate_id, version, occurred_at, headers, payload';
const how = {
  delete: 'DELETE FROM bench.outbox',
  mark: 'UPDATE bench.outbox SET published_at = now()',
}[values.done];
if (!how) throw new Error('--done must be delete or mark');
const take = {
  name: 'take',
  rowMode: 'array',
  types: { getTypeParser: () => (text) => text },
  text: `WITH taken AS (${how} WHERE id = ANY (ARRAY(${ids})) RETURNING id, ${columns}) SELECT ${columns} FROM taken ORDER BY id`,
  values: [batch],
};

// "2026-11-21 08:55:15.964060+00" as ISO 8601 writes it; the connection's time zone is UTC
const iso = (text) => `${text.slice(0, 10)}T${text.slice(11, -3)}Z`;

async function connect() {
  const client = new pg.Client({ ...postgres(values.conninfo), options: '-c timezone=UTC -c synchronous_commit=off', pipeline: true });
  await client.connect();
  return client;
}

async function main() {
  const listener = await connect();
  const lanes = await Promise.all(Array.from({ length: Number(values.lanes) }, connect));
  const redis = new Redis(address(values.redis));
  await redis.ping();

  let events = 0;
  let stopping = false;
  let notified = false;
  let wake = () => {};
  const done = () => stopping || (wanted > 0 && events >= wanted);
  process.on('SIGTERM', () => {
    stopping = true;
    wake();
  });
  listener.on('notification', () => {
    notified = true;
    wake();
  });
  await listener.query('LISTEN bench_outbox');

  async function quiet() {
    if (!notified && !stopping) {
      await new Promise((resolve) => {
        wake = resolve;
        setTimeout(resolve, Number(values.poll)).unref();
      });
    }
    notified = false;
  }

  function append(rows) {
    const pipeline = redis.pipeline();
    for (const row of rows) {
      pipeline.xadd(stream, '*', 'event_id', row[0], 'event_type', row[1], 'aggregate_type', row[2], 'aggregate_id', row[3],
        'version', row[4], 'occurred_at', iso(row[5]), 'headers', row[6], 'payload', row[7]);
    }
    return pipeline.exec();
  }

  // One batch: how many events it had. The next may be taken as soon as this one is; it is sent later than this one, because the
  // answer of PostgreSQL can only come in a later turn of the event loop.
  let taken = Promise.resolve();
  async function round(client) {
    const before = taken;
    let next;
    taken = new Promise((resolve) => (next = resolve));
    await before;
    const begun = client.query('BEGIN');
    const { rows } = await client.query(take).finally(next);
    await begun;
    await new Promise(setImmediate);
    if (rows.length) {
      const failed = (await append(rows)).find(([error]) => error);
      if (failed) throw failed[0];
    }
    await client.query('COMMIT');
    events += rows.length;
    return rows.length;
  }

  async function drain(client) {
    while (!done() && (await round(client)) > 0);
  }

  const time = meter();
  time.begin();
  while (!done()) {
    await Promise.all(lanes.map(drain));
    // with little to do one connection is enough: the other would only take the database's time
    while (!done()) {
      await quiet();
      if (!done() && (await round(lanes[0])) === batch) break;
    }
  }
  time.report(events);
  redis.disconnect();
  await Promise.all([listener, ...lanes].map((client) => client.end()));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
