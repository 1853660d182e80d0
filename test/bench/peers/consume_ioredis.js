'use strict';
// A consumer as somebody who knows ioredis would write it: one connection reads a batch of 500, the other acknowledges; the next
// read is on its way while a batch is handled, and no read waits for an XACK. At least once; no order, no retries.
//
//   node consume_ioredis.js --redis PATH|PORT [--group bench] [--stream KEY] [--events N] [--count N]
const Redis = require('ioredis');

const options = { redis: '', group: 'bench', stream: 'outbox:{billing}', events: '500000', count: '500' };
for (let i = 2; i < process.argv.length; i += 2) {
  const name = process.argv[i].replace(/^--/, '');
  if (!(name in options) || i + 1 === process.argv.length) {
    console.error('usage: consume_ioredis.js --redis PATH|PORT [--group NAME] [--stream KEY] [--events N] [--count N]');
    process.exit(1);
  }
  options[name] = process.argv[i + 1];
}
const { stream, group } = options;
const events = Number(options.events);

async function handle(event) {}

function decode(id, fields) {
  const event = { id };
  for (let i = 0; i < fields.length; i += 2) event[fields[i]] = fields[i + 1];
  return event;
}

async function main() {
  const reader = new Redis(options.redis);
  const writer = new Redis(options.redis);
  await Promise.all([reader.ping(), writer.ping()]);
  const read = () => reader.xreadgroup('GROUP', group, 'ioredis', 'COUNT', options.count, 'BLOCK', 1000, 'STREAMS', stream, '>');

  const before = process.cpuUsage();
  const began = process.hrtime.bigint();
  let seen = 0;
  let acknowledged = 0;
  const unanswered = new Set();
  let next = read();
  while (seen < events) {
    const reply = await next;
    if (reply === null) throw new Error(`the stream has fewer entries than --events: ${seen}`);
    const entries = reply[0][1];
    seen += entries.length;
    if (seen < events) next = read();
    const ids = [];
    for (const [id, fields] of entries) {
      await handle(decode(id, fields));
      ids.push(id);
    }
    const answer = writer.xack(stream, group, ...ids).then((n) => {
      acknowledged += n;
      unanswered.delete(answer);
    });
    unanswered.add(answer);
  }
  await Promise.all(unanswered);
  const seconds = Number(process.hrtime.bigint() - began) / 1e9;
  const used = process.cpuUsage(before);
  if (acknowledged !== events) throw new Error(`acknowledged ${acknowledged} of ${events} events`);
  const cpu = (used.user + used.system) / 1e6;
  console.log(JSON.stringify({ events, seconds, rate: Math.round(events / seconds), cpu, cpu_us: (cpu / events) * 1e6 }));
  reader.disconnect();
  writer.disconnect();
}

main().catch((error) => {
  console.error(`consume_ioredis: ${error.message}`);
  process.exit(1);
});
