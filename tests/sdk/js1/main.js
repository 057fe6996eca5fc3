// Plays scenarios with kubemq-js 1, unmodified.
//
// Prints one JSON line per scenario. When a scenario needs the server to end and to be started again, it prints
// {"request":"kill"} or {"request":"stop"} and waits for a line on its standard input.
'use strict';

const readline = require('node:readline');
const patterns = require('./patterns.js');
const queues = require('./queues.js');
const { World } = require('./world.js');

// A scenario gets two minutes: most take none, some wait for a delay.
const PATIENCE = 120_000;
const scenarios = { ...queues, ...patterns };

const input = readline.createInterface({ input: process.stdin });
const say = (line) => process.stdout.write(JSON.stringify(line) + '\n');
const again = (how) =>
  new Promise((resolve) => {
    input.once('line', resolve);
    say({ request: how });
  });

// What the SDK throws where nobody can catch it belongs to the scenario that runs.
let fail = () => {};
process.on('uncaughtException', (error) => fail(error));
process.on('unhandledRejection', (error) => fail(error));

// Names the line of a scenario that an error came from.
function where(error) {
  const line = String(error?.stack).split('\n').find((line) => /(queues|patterns)\.js:/.test(line)) ?? '';
  return line.slice(line.lastIndexOf('/') + 1).replace(/:\d+\)?$/, '');
}

async function play(id, world) {
  if (!scenarios[id]) throw new Error('the runner does not know this scenario');
  let timer;
  const failed = new Promise((_, reject) => {
    fail = reject;
    timer = setTimeout(() => reject(new Error(`not through after ${PATIENCE} ms`)), PATIENCE);
  });
  try {
    await Promise.race([scenarios[id](world), failed]);
  } finally {
    clearTimeout(timer);
    fail = () => {};
    world.close();
  }
}

async function main([address, ...ids]) {
  for (const id of ids) {
    const started = Date.now();
    try {
      await play(id, new World(address, `js1.${id}`, again));
      say({ scenario: id, result: 'passed', detail: `${Date.now() - started} ms` });
    } catch (error) {
      say({ scenario: id, result: 'failed', detail: `${where(error)}: ${error?.message ?? error}` });
    }
  }
  process.exit(0);
}

main(process.argv.slice(2));
