// The scenarios of events, events-store, commands and queries.
'use strict';

const { EventStoreType } = require('kubemq-js');
const { bytes, check, pause, same, text, texts, until } = require('./world.js');

const PROBE = 'probe';
// The body of messages that pass the limits of every SDK just so.
const LARGE = '0123456789'.repeat(300_000);

/** What a subscriber has received. Probes, which show that a subscription works, are only counted. */
class Inbox {
  constructor() {
    this.received = [];
    this.errors = [];
    this.probes = 0;
  }

  put(error, message) {
    if (error) this.errors.push(error);
    else if (text(message.body) === PROBE) this.probes++;
    else this.received.push(message);
  }

  bodies() {
    return this.received.map((message) => text(message.body));
  }

  async has(...expected) {
    await until(`${expected.length} messages`, () => this.received.length >= expected.length);
    same(this.bodies(), expected);
  }
}

async function subscribe(client, request) {
  const inbox = new Inbox();
  const subscription = await client.subscribe(request, (error, message) => inbox.put(error, message));
  inbox.leave = () => subscription.unsubscribe();
  return inbox;
}

const toEvents = (client, channel, group) => subscribe(client, { channel, group });

const toStore = (client, channel, requestType, requestTypeValue = 0, group = '') =>
  subscribe(client, { channel, group, requestType, requestTypeValue });

async function send(client, channel, ...bodies) {
  for (const body of bodies) {
    const result = await client.send({ channel, body: bytes(body) });
    check(result.sent, result);
  }
}

/** Sends probes until every subscriber has seen one. */
async function ready(client, channel, ...inboxes) {
  await until('the subscriptions', async () => {
    await send(client, channel, PROBE);
    return inboxes.every((inbox) => inbox.probes > 0);
  });
}

/** Waits until members have got as many as are expected between them, each of them some, and compares. */
async function together(expected, ...members) {
  const union = () => members.flatMap((member) => member.bodies());
  await until('all messages of the group', () => union().length >= expected.length);
  same(union().sort(), expected.sort());
  check(members.every((member) => member.received.length > 0), 'a member of the group got nothing');
}

async function eventsSend(w) {
  const client = w.client('EventsClient');
  const inbox = await toEvents(client, w.channel);
  await ready(client, w.channel, inbox);
  await client.send({ id: 'my-id', channel: w.channel, metadata: 'metadata', body: bytes('body') });
  await inbox.has('body');
  const [event] = inbox.received;
  same([event.id, event.metadata, event.channel], ['my-id', 'metadata', w.channel]);
}

async function eventsStream(w) {
  const client = w.client('EventsClient');
  const inbox = await toEvents(client, w.channel);
  await ready(client, w.channel, inbox);
  const errors = [];
  const stream = await client.stream((error) => error && errors.push(error));
  for (const body of texts(1, 100)) stream.write({ channel: w.channel, body: bytes(body) });
  await inbox.has(...texts(1, 100));
  stream.end();
  same(errors, []);
}

async function eventsFanOut(w) {
  const client = w.client('EventsClient');
  const inboxes = [await toEvents(client, w.channel), await toEvents(client, w.channel)];
  await ready(client, w.channel, ...inboxes);
  await send(client, w.channel, ...texts(1, 20));
  for (const inbox of inboxes) await inbox.has(...texts(1, 20));
}

async function eventsGroups(w) {
  const client = w.client('EventsClient');
  const [one, two] = [await toEvents(client, w.channel, 'group'), await toEvents(client, w.channel, 'group')];
  const [other, single] = [await toEvents(client, w.channel, 'other'), await toEvents(client, w.channel)];
  await ready(client, w.channel, one, two, other, single);
  await send(client, w.channel, ...texts(1, 60));
  await single.has(...texts(1, 60));
  await other.has(...texts(1, 60));
  await together(texts(1, 60), one, two);
}

async function eventsGroupLeft(w) {
  const client = w.client('EventsClient');
  const [stays, leaves] = [await toEvents(client, w.channel, 'group'), await toEvents(client, w.channel, 'group')];
  await ready(client, w.channel, stays, leaves);
  // The SDK takes two seconds for it.
  leaves.leave();
  let round = 0;
  await until('a round that reaches the one who stays', async () => {
    round++;
    const bodies = texts(1, 20).map((number) => `${round}-${number}`);
    await send(client, w.channel, ...bodies);
    for (let time = 0; time < 20; time++) {
      if (JSON.stringify(stays.bodies().slice(-20)) === JSON.stringify(bodies)) return true;
      await pause(20);
    }
    return false;
  });
}

async function eventsWildcards(w) {
  const client = w.client('EventsClient');
  const [star, rest] = [await toEvents(client, w.channel + '.*'), await toEvents(client, w.channel + '.>')];
  await ready(client, w.channel + '.p', star, rest);
  await send(client, w.channel + '.a.b', 'deep');
  await send(client, w.channel + '.a', 'flat');
  await rest.has('deep', 'flat');
  await star.has('flat');
  same(rest.received.map((event) => event.channel), [w.channel + '.a.b', w.channel + '.a']);
}

async function eventsLarge(w) {
  const client = w.client('EventsClient');
  const inbox = await toEvents(client, w.channel);
  await ready(client, w.channel, inbox);
  await send(client, w.channel, LARGE);
  await until('the event', () => inbox.received.length > 0);
  check(inbox.bodies()[0] === LARGE, 'the body changed');
}

async function storeSend(w) {
  const client = w.client('EventsStoreClient');
  const result = await client.send({ id: 'my-id', channel: w.channel, metadata: 'metadata', body: bytes('body') });
  check(result.sent && result.id === 'my-id' && !result.error, result);
  const inbox = await toStore(client, w.channel, EventStoreType.StartFromFirst);
  await inbox.has('body');
  const [event] = inbox.received;
  same([event.id, event.metadata, event.channel, event.sequence], ['my-id', 'metadata', w.channel, 1]);
  check(Math.abs(event.timestamp / 1e6 - Date.now()) < 60_000, event);
}

async function storeStream(w) {
  const client = w.client('EventsStoreClient');
  const results = [];
  const stream = await client.stream((error, result) => {
    // Called without either when an event was written.
    if (error || result) results.push(error ?? result);
  });
  const ids = texts(1, 100).map((number) => `id-${number}`);
  for (const id of ids) stream.write({ id, channel: w.channel, body: bytes(id) });
  await until('the results', () => results.length >= 100);
  check(results.every((result) => result.sent), results);
  same(results.map((result) => result.id).sort(), [...ids].sort());
  stream.end();
  const inbox = await toStore(client, w.channel, EventStoreType.StartFromFirst);
  await inbox.has(...ids);
}

/** Stores one message after the other until the subscriber gets one. */
async function firstNew(w, client, inbox) {
  let number = 0;
  await until('a new event', async () => {
    await send(client, w.channel, `new ${++number}`);
    return inbox.received.length > 0;
  });
  return inbox.received[0];
}

async function storeNewOnly(w) {
  const client = w.client('EventsStoreClient');
  await send(client, w.channel, ...texts(1, 3));
  const event = await firstNew(w, client, await toStore(client, w.channel, EventStoreType.StartNewOnly));
  check(text(event.body).startsWith('new') && event.sequence > 3, event);
}

/** Stores ten, expects all from number first on, and then what is stored afterwards. */
async function storeFrom(w, first, type, value) {
  const client = w.client('EventsStoreClient');
  await send(client, w.channel, ...texts(1, 10));
  const inbox = await toStore(client, w.channel, type, value);
  await inbox.has(...texts(first, 10));
  await send(client, w.channel, ...texts(11, 12));
  await inbox.has(...texts(first, 12));
  same(inbox.received.map((event) => String(event.sequence)), texts(first, 12));
}

async function storeSequenceAhead(w) {
  const client = w.client('EventsStoreClient');
  await send(client, w.channel, ...texts(1, 3));
  const event = await firstNew(w, client, await toStore(client, w.channel, EventStoreType.StartAtSequence, 4));
  same([text(event.body), event.sequence], ['new 1', 4]);
}

async function storeTime(w) {
  const client = w.client('EventsStoreClient');
  await send(client, w.channel, ...texts(1, 5));
  await pause(2500);
  const seconds = Math.floor(Date.now() / 1000) - 1;
  await send(client, w.channel, ...texts(6, 10));
  const inbox = await toStore(client, w.channel, EventStoreType.StartAtTime, seconds);
  await inbox.has(...texts(6, 10));
}

async function storeDelta(w) {
  const client = w.client('EventsStoreClient');
  await send(client, w.channel, ...texts(1, 5));
  await pause(5000);
  await send(client, w.channel, ...texts(6, 10));
  const inbox = await toStore(client, w.channel, EventStoreType.StartAtTimeDelta, 3);
  await inbox.has(...texts(6, 10));
}

async function storeGroups(w) {
  const members = [];
  for (const id of ['one', 'two']) {
    const client = w.client('EventsStoreClient', id);
    members.push(await toStore(client, w.channel, EventStoreType.StartFromFirst, 0, 'group'));
  }
  const sender = w.client('EventsStoreClient');
  await ready(sender, w.channel, ...members);
  await send(sender, w.channel, ...texts(1, 100));
  await together(texts(1, 100), ...members);
  for (const member of members) {
    const sequences = member.received.map((event) => event.sequence);
    same(sequences, [...sequences].sort((a, b) => a - b));
  }
}

async function storeResume(w) {
  const sender = w.client('EventsStoreClient', 'sender');
  await send(sender, w.channel, ...texts(1, 5));
  const client = w.client('EventsStoreClient', 'resumes');
  const first = await toStore(client, w.channel, EventStoreType.StartFromFirst);
  await first.has(...texts(1, 5));
  // The SDK takes two seconds for it.
  first.leave();
  await until('the end of the subscription', () => first.errors.length > 0);
  await send(sender, w.channel, ...texts(6, 8));
  const second = await toStore(client, w.channel, EventStoreType.StartFromFirst);
  await second.has(...texts(6, 8));
}

async function storeWildcards(w) {
  const inbox = await toStore(w.client('EventsStoreClient'), w.channel + '.*', EventStoreType.StartFromFirst);
  await until('the refusal', () => inbox.errors.length > 0);
  check(inbox.errors[0].message.includes('Error 107'), inbox.errors[0].message);
}

/** Answers commands or queries: queries with their metadata, both with an error when the body asks for it. */
async function respond(client, channel, group) {
  const inbox = new Inbox();
  await client.subscribe({ channel, group }, (error, request) => {
    if (error) return inbox.put(error);
    const failed = text(request.body) === 'fail';
    const response = {
      id: request.id,
      replyChannel: request.replyChannel,
      clientId: 'js1',
      timestamp: Date.now(),
      executed: !failed,
      error: failed ? 'it failed' : '',
      metadata: request.metadata,
      body: bytes('answer to ' + text(request.body)),
    };
    client.response(response).then(() => inbox.put(null, request), (error) => inbox.put(error));
  });
  return inbox;
}

const ask = (w, client, body, timeout = 10_000, more = {}) =>
  client.send({ channel: w.channel, metadata: 'metadata', body: bytes(body), timeout, ...more });

/** Sends probes until every responder has seen one. */
async function responders(w, client, ...inboxes) {
  await until('the responders', async () => {
    const response = await ask(w, client, PROBE, 1000).catch(() => null);
    return response?.executed && inboxes.every((inbox) => inbox.probes > 0);
  });
}

async function answer(w, kind) {
  const client = w.client(kind);
  const inbox = await respond(client, w.channel);
  await responders(w, client, inbox);
  const response = await ask(w, client, 'body');
  same([response.executed, response.error], [true, '']);
  if (kind === 'QueriesClient') same([text(response.body), response.metadata], ['answer to body', 'metadata']);
  await inbox.has('body');
  const [request] = inbox.received;
  same([request.metadata, request.channel], ['metadata', w.channel]);
  check(request.id, request);
}

async function error(w, kind) {
  const client = w.client(kind);
  await responders(w, client, await respond(client, w.channel));
  const response = await ask(w, client, 'fail');
  same([response.executed, response.error], [false, 'it failed']);
}

async function timeout(w, kind) {
  const started = Date.now();
  const error = await ask(w, w.client(kind), 'body', 1000).then(() => null, (error) => error);
  check(error?.message.includes('Error 301'), String(error));
  const took = Date.now() - started;
  check(took > 950 && took < 10_000, `after ${took} ms`);
}

async function groups(w, kind) {
  const client = w.client(kind);
  const [one, two] = [await respond(client, w.channel, 'group'), await respond(client, w.channel, 'group')];
  await responders(w, client, one, two);
  for (const body of texts(1, 60)) check((await ask(w, client, body)).executed, body);
  await together(texts(1, 60), one, two);
}

async function commandConcurrent(w) {
  const client = w.client('CommandsClient');
  const inbox = await respond(client, w.channel);
  await responders(w, client, inbox);
  const responses = await Promise.all(texts(1, 50).map((body) => ask(w, client, body)));
  check(responses.every((response) => response.executed), responses);
  await together(texts(1, 50), inbox);
}

async function queryLarge(w) {
  const client = w.client('QueriesClient');
  const inbox = await respond(client, w.channel);
  await responders(w, client, inbox);
  const response = await ask(w, client, LARGE);
  check(text(response.body) === 'answer to ' + LARGE, 'the body of the answer changed');
  await until('the query', () => inbox.received.length > 0);
  check(inbox.bodies()[0] === LARGE, 'the body changed');
}

async function queryCache(w) {
  const client = w.client('QueriesClient');
  const inbox = await respond(client, w.channel);
  await responders(w, client, inbox);
  // The SDK does not say whether an answer came from the cache: the responder does.
  const fromCache = { cacheKey: 'key', cacheTTL: 2 };
  for (let time = 0; time < 3; time++) {
    same(text((await ask(w, client, 'body', 10_000, fromCache)).body), 'answer to body');
  }
  await inbox.has('body');
  await pause(2100);
  same(text((await ask(w, client, 'body', 10_000, fromCache)).body), 'answer to body');
  await inbox.has('body', 'body');
}

module.exports = {
  events_send: eventsSend,
  events_stream: eventsStream,
  events_fan_out: eventsFanOut,
  events_groups: eventsGroups,
  events_group_left: eventsGroupLeft,
  events_wildcards: eventsWildcards,
  events_large: eventsLarge,
  store_send: storeSend,
  store_stream: storeStream,
  store_new_only: storeNewOnly,
  store_first: (w) => storeFrom(w, 1, EventStoreType.StartFromFirst),
  store_last: (w) => storeFrom(w, 10, EventStoreType.StartFromLast),
  store_sequence: (w) => storeFrom(w, 4, EventStoreType.StartAtSequence, 4),
  store_sequence_ahead: storeSequenceAhead,
  store_time: storeTime,
  store_delta: storeDelta,
  store_groups: storeGroups,
  store_resume: storeResume,
  store_wildcards: storeWildcards,
  command_answer: (w) => answer(w, 'CommandsClient'),
  command_error: (w) => error(w, 'CommandsClient'),
  command_timeout: (w) => timeout(w, 'CommandsClient'),
  command_groups: (w) => groups(w, 'CommandsClient'),
  command_concurrent: commandConcurrent,
  query_answer: (w) => answer(w, 'QueriesClient'),
  query_error: (w) => error(w, 'QueriesClient'),
  query_timeout: (w) => timeout(w, 'QueriesClient'),
  query_cache: queryCache,
  query_large: queryLarge,
  query_groups: (w) => groups(w, 'QueriesClient'),
};
