// What a scenario gets: where the server is, clients that are closed when it ends, and a channel of its own.
'use strict';

const kubemq = require('kubemq-js');

const SOON = 30_000;

function check(condition, what) {
  if (!condition) throw new Error(typeof what === 'string' ? what : JSON.stringify(what));
}

function same(found, expected, what = '') {
  check(JSON.stringify(found) === JSON.stringify(expected), `${what} ${JSON.stringify(found)} instead of ${JSON.stringify(expected)}`);
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Calls probe until it returns something true, and returns that. */
async function until(what, probe) {
  for (const deadline = Date.now() + SOON; ; await pause(20)) {
    const found = await probe();
    if (found) return found;
    check(Date.now() < deadline, `waited ${SOON} ms in vain for ${what}`);
  }
}

const text = (bytes) => Buffer.from(bytes).toString();
const bodies = (messages) => messages.map((message) => text(message.body));
const texts = (first, last) => Array.from({ length: last - first + 1 }, (_, index) => String(first + index));
const bytes = (body) => Buffer.from(body);

class World {
  constructor(address, channel, again) {
    this.address = address;
    this.channel = channel;
    this.again = again;
    this.clients = [];
  }

  client(kind, clientId = 'js1') {
    const client = new kubemq[kind]({ address: this.address, clientId });
    this.clients.push(client);
    return client;
  }

  queues(clientId) {
    return this.client('QueuesClient', clientId);
  }

  close() {
    for (const client of this.clients) client.close();
  }

  async fill(client, channel, ...expected) {
    const results = await client.batch(expected.map((body) => ({ channel, body: bytes(body) })));
    same(results.map((result) => result.isError), expected.map(() => false));
  }

  /** Receives and acknowledges by one call. */
  async take(client, channel, most, wait = 10) {
    const response = await client.pull({ channel, maxNumberOfMessages: most, waitTimeoutSeconds: wait });
    check(!response.isError, response.error);
    return response.messages;
  }

  async takes(client, channel, ...expected) {
    const messages = await this.take(client, channel, expected.length);
    same(bodies(messages), expected, channel);
    return messages;
  }

  async empty(client, channel) {
    same(bodies(await this.take(client, channel, 1, 1)), [], channel);
  }

  /** Receives one message over the old stream; `ended` settles when the server has ended the stream. */
  next(client, channel, visibility = 30, wait = 10) {
    return new Promise((resolve, reject) => {
      const request = { channel, visibilitySeconds: visibility, waitTimeoutSeconds: wait };
      const told = (error, held) => {
        // Called without either when the request was written.
        if (error) reject(error);
        else if (held) resolve({ held, message: held.message, ended });
      };
      const ended = client.transaction(request, told);
      ended.catch(reject);
    });
  }

  async nextIs(client, channel, body, visibility) {
    const next = await this.next(client, channel, visibility);
    same(text(next.message.body), body, channel);
    return next;
  }

  /** Waits until a connection that was lost is back: the SDK does not repeat calls, the application does. */
  async connected(client) {
    await until('the connection', () => client.ping().catch(() => null));
  }
}

module.exports = { World, bodies, bytes, check, pause, same, text, texts, until };
