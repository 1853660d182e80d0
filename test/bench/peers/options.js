'use strict';
// The command line of the programs in this folder, and how they end: with one line of JSON, once so many events are done or
// when they are told to.

const { parseArgs } = require('node:util');

const common = {
  conninfo: { type: 'string', help: 'of the database: host=… port=… dbname=… user=…' },
  redis: { type: 'string', help: 'path of a unix socket, or port of 127.0.0.1' },
  stream: { type: 'string', help: 'the stream that is appended to' },
  events: { type: 'string', default: '0', help: 'end after so many events; 0: at SIGTERM' },
  help: { type: 'boolean', default: false, help: 'this' },
};

// own: further options as { name: { type, default, help } }
function options(own = {}) {
  const all = { ...common, ...own };
  const { values } = parseArgs({ options: all });
  if (values.help) {
    for (const [name, { help, default: value }] of Object.entries(all)) {
      console.log(`--${name.padEnd(12)} ${help}${value ? ` [${value}]` : ''}`);
    }
    process.exit(0);
  }
  for (const name of ['conninfo', 'redis', 'stream']) {
    if (values[name] === undefined) {
      console.error(`--${name} is missing; --help shows the options`);
      process.exit(2);
    }
  }
  return values;
}

// "host=/path port=5432 dbname=postgres user=me", as libpq's programs take it
function postgres(conninfo) {
  const settings = Object.fromEntries(conninfo.split(/\s+/).filter(Boolean).map((pair) => pair.split('=')));
  const { host, port, dbname, user, ...unknown } = settings;
  if (Object.keys(unknown).length) throw new Error(`unknown in --conninfo: ${Object.keys(unknown)}`);
  return { host, port: Number(port ?? 5432), database: dbname, user };
}

function redis(address) {
  return address.startsWith('/') ? { path: address } : { host: '127.0.0.1', port: Number(address) };
}

// How long it took since `begin()`, and the CPU that this process used meanwhile.
function meter() {
  let time, cpu;
  return {
    begin() {
      time = process.hrtime.bigint();
      cpu = process.cpuUsage();
    },
    report(events) {
      const { user, system } = process.cpuUsage(cpu);
      const seconds = Number(process.hrtime.bigint() - time) / 1e9;
      const used = (user + system) / 1e6;
      console.log(JSON.stringify({ events, seconds, rate: events / seconds, cpu: used, cpu_us: events ? (used / events) * 1e6 : 0 }));
    },
  };
}

module.exports = { options, postgres, redis, meter };
