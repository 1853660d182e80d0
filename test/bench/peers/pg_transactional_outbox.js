'use strict';
// pg-transactional-outbox, set up by its own statements and used as its README has it for an outbox: its replication listener (or its
// polling one), the protections that it has for inboxes off, and a handler that appends.
//
// What the README leaves open is chosen for speed: messages are handled side by side, as many as there are connections; ioredis
// sends what is appended in one turn of the event loop in one write; and no commit waits for the log, as one that is lost is a
// message handled again.

const pg = require('pg');
const Redis = require('ioredis');
const library = require('pg-transactional-outbox');
const { options, postgres, redis: address, meter } = require('./options');

const values = options({
  setup: { type: 'boolean', default: false, help: 'create what the listener wants in the database, and end' },
  listener: { type: 'string', default: 'replication', help: 'replication or polling' },
  poll: { type: 'string', default: '10', help: 'ms between two looks of the polling listener' },
  concurrency: { type: 'string', default: '20', help: 'messages handled at once' },
});
const wanted = Number(values.events);
const concurrency = Number(values.concurrency);
const { stream } = values;

const database = postgres(values.conninfo);
const names = {
  outboxOrInbox: 'outbox',
  database: database.database,
  schema: 'public',
  table: 'outbox',
  listenerRole: database.user,
  publication: 'library_publication',
  replicationSlot: 'library_slot',
  nextMessagesName: 'next_outbox_messages',
};

async function setup() {
  const client = new pg.Client(database);
  await client.connect();
  const { DatabaseSetup } = library;
  await client.query(DatabaseSetup.dropAndCreateTable(names));
  if (values.listener === 'polling') {
    await client.query(DatabaseSetup.createPollingFunction(names));
    await client.query(DatabaseSetup.setupPollingIndexes(names));
  } else {
    await client.query(DatabaseSetup.setupReplicationCore(names));
    // each statement by itself: a slot wants a transaction of its own
    for (const statement of DatabaseSetup.setupReplicationSlot(names).split(';')) {
      if (statement.trim()) await client.query(statement);
    }
  }
  await client.end();
}

async function main() {
  if (values.setup) return setup();
  const redis = new Redis({ ...address(values.redis), enableAutoPipelining: true });
  await redis.ping();

  let events = 0;
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  process.on('SIGTERM', end);

  const handler = {
    async handle({ id, messageType, aggregateType, aggregateId, metadata, createdAt, payload }) {
      await redis.xadd(stream, '*', 'event_id', id, 'event_type', messageType, 'aggregate_type', aggregateType,
        'aggregate_id', aggregateId, 'version', metadata.version, 'occurred_at', createdAt,
        'headers', JSON.stringify(metadata.headers), 'payload', JSON.stringify(payload));
      if (++events === wanted) end();
    },
  };

  const connection = { ...database, options: '-c synchronous_commit=off', max: concurrency };
  const settings = {
    dbSchema: names.schema,
    dbTable: names.table,
    enableMaxAttemptsProtection: false,
    enablePoisonousMessageProtection: false,
  };
  const logger = { ...library.getDisabledLogger(), error: console.error, warn: console.error };
  const time = meter();
  time.begin();
  const [shutdown] =
    values.listener === 'polling'
      ? library.initializePollingMessageListener(
          {
            outboxOrInbox: 'outbox',
            dbListenerConfig: connection,
            settings: {
              ...settings,
              nextMessagesFunctionName: names.nextMessagesName,
              nextMessagesBatchSize: concurrency,
              nextMessagesPollingIntervalInMs: Number(values.poll),
            },
          },
          handler,
          logger,
        )
      : library.initializeReplicationMessageListener(
          {
            outboxOrInbox: 'outbox',
            dbListenerConfig: database,
            dbHandlerConfig: connection,
            settings: { ...settings, dbPublication: names.publication, dbReplicationSlot: names.replicationSlot },
          },
          handler,
          logger,
          { concurrencyStrategy: library.createReplicationSemaphoreConcurrencyController(concurrency) },
        );
  await ended;
  time.report(events);
  await shutdown();
  redis.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
