// The scenarios of queues and reconnection.
'use strict';

const { fork } = require('node:child_process');
const path = require('node:path');
const { bodies, bytes, check, pause, same, texts } = require('./world.js');

async function ping(w) {
  const info = await w.queues().ping();
  check(info.host && info.version && info.serverStartTime > 0 && info.serverUpTimeSeconds >= 0, info);
}

async function sendReceive(w) {
  const client = w.queues();
  // Without tags: the SDK takes the whole map for one key, and then cannot encode the message.
  const result = await client.send({ id: 'my-id', channel: w.channel, metadata: 'metadata', body: bytes('body') });
  check(!result.isError && result.id === 'my-id' && result.sentAt > 0, result);
  const [message] = await w.takes(client, w.channel, 'body');
  same([message.id, message.metadata, message.channel, message.clientId], ['my-id', 'metadata', w.channel, 'js1']);
  same([message.attributes.sequence, message.attributes.receiveCount], [1, 1]);
  await w.empty(client, w.channel);
}

async function sendBatch(w) {
  const client = w.queues();
  await w.fill(client, w.channel, ...texts(1, 10));
  await w.takes(client, w.channel, ...texts(1, 10));
}

async function sendRefused(w) {
  const result = await w.queues().send({ channel: w.channel });
  check(result.isError && result.error.startsWith('Error 110:'), result);
}

async function receiveEmpty(w) {
  const started = Date.now();
  await w.empty(w.queues(), w.channel);
  check(Date.now() - started > 900, 'answered too early');
}

async function peek(w) {
  const client = w.queues();
  await w.fill(client, w.channel, ...texts(1, 5));
  for (let time = 0; time < 2; time++) {
    const response = await client.peek({ channel: w.channel, maxNumberOfMessages: 3, waitTimeoutSeconds: 5 });
    same(bodies(response.messages), texts(1, 3));
  }
  await w.takes(client, w.channel, ...texts(1, 5));
}

async function ackAll(w) {
  const client = w.queues();
  await w.fill(client, w.channel, ...texts(1, 7));
  const response = await client.ackAll({ channel: w.channel, waitTimeoutSeconds: 1 });
  same([response.isError, response.affectedMessages], [false, 7]);
  await w.empty(client, w.channel);
}

async function delay(w) {
  const client = w.queues();
  const started = Date.now();
  const result = await client.send({ channel: w.channel, body: bytes('late'), policy: { delaySeconds: 2 } });
  check(!result.isError && result.delayedTo > 0, result);
  await w.takes(client, w.channel, 'late');
  check(Date.now() - started > 1980, 'it came too early');
}

async function expiration(w) {
  const client = w.queues();
  const result = await client.send({ channel: w.channel, body: bytes('old'), policy: { expirationSeconds: 1 } });
  check(!result.isError && result.expirationAt > 0, result);
  await pause(2000);
  const response = await client.pull({ channel: w.channel, maxNumberOfMessages: 1, waitTimeoutSeconds: 1 });
  same([response.messages.length, response.messagesExpired], [0, 1]);
}

async function duplicateClientIds(w) {
  const [first, second] = [w.queues('same'), w.queues('same')];
  await w.fill(first, w.channel, ...texts(1, 2));
  await w.fill(second, w.channel, ...texts(3, 4));
  const { held, ended } = await w.nextIs(first, w.channel, '1');
  await w.takes(second, w.channel, '2', '3');
  await w.takes(first, w.channel, '4');
  second.close();
  await held.ack();
  await ended;
  await w.empty(first, w.channel);
}

async function concurrentReceivers(w) {
  const clients = [w.queues('one'), w.queues('two')];
  await w.fill(clients[0], w.channel, ...texts(1, 200));
  const drain = async (client) => {
    const found = [];
    for (;;) {
      const messages = await w.take(client, w.channel, 7, 1);
      if (messages.length === 0) return found;
      found.push(...bodies(messages));
    }
  };
  const found = (await Promise.all(clients.map(drain))).flat();
  same(found.sort(), texts(1, 200).sort());
}

async function streamAck(w) {
  const client = w.queues();
  await w.fill(client, w.channel, ...texts(1, 5));
  for (const body of texts(1, 5)) {
    const { held, ended } = await w.nextIs(client, w.channel, body);
    await held.ack();
    await ended;
  }
  await w.empty(client, w.channel);
}

async function streamReject(w) {
  const client = w.queues();
  await w.fill(client, w.channel, '1');
  const first = await w.nextIs(client, w.channel, '1');
  await first.held.reject();
  await first.ended;
  const second = await w.nextIs(client, w.channel, '1');
  same(second.message.attributes.receiveCount, 2);
  await second.held.ack();
  await second.ended;
  await w.empty(client, w.channel);
}

async function streamExtendVisibility(w) {
  const client = w.queues();
  await w.fill(client, w.channel, '1');
  const { held, ended } = await w.nextIs(client, w.channel, '1', 3);
  await held.extendVisibility(30);
  await pause(4000);
  await held.ack();
  await ended;
  await w.empty(client, w.channel);
}

async function streamVisibility(w) {
  const client = w.queues();
  await w.fill(client, w.channel, '1');
  const first = await w.nextIs(client, w.channel, '1', 1);
  await first.ended;
  const second = await w.nextIs(client, w.channel, '1');
  same(second.message.attributes.receiveCount, 2);
  await second.held.ack();
  await second.ended;
  await w.empty(client, w.channel);
}

async function streamResend(w) {
  const client = w.queues();
  await w.fill(client, w.channel, '1');
  const { held, ended } = await w.nextIs(client, w.channel, '1');
  await held.resendToChannel(w.channel + '.other');
  await ended;
  const [message] = await w.takes(client, w.channel + '.other', '1');
  same(message.attributes.receiveCount, 1);
  await w.empty(client, w.channel);
}

async function streamResendNew(w) {
  const client = w.queues();
  await w.fill(client, w.channel, '1');
  const { held, ended } = await w.nextIs(client, w.channel, '1');
  await held.resendNewMessage({ channel: w.channel + '.other', body: bytes('2') });
  await ended;
  await w.takes(client, w.channel + '.other', '2');
  await w.empty(client, w.channel);
}

async function streamDeadLetter(w) {
  const client = w.queues();
  const dead = w.channel + '.dead';
  const policy = { maxReceiveCount: 3, maxReceiveQueue: dead };
  const result = await client.send({ channel: w.channel, body: bytes('1'), policy });
  check(!result.isError, result.error);
  for (let count = 1; count <= 3; count++) {
    const { held, message, ended } = await w.nextIs(client, w.channel, '1');
    same(message.attributes.receiveCount, count);
    await held.reject();
    await ended;
  }
  const [letter] = await w.takes(client, dead, '1');
  same([letter.attributes.reRouted, letter.attributes.reRoutedFromQueue], [true, w.channel]);
  await w.empty(client, w.channel);
}

async function streamDisconnect(w) {
  const client = w.queues();
  await w.fill(client, w.channel, '1');
  // Closing a client of this SDK ends none of its streams: a process that is killed does.
  const child = fork(path.join(__dirname, 'hold.js'), [w.address, w.channel]);
  await new Promise((resolve) => child.once('message', resolve));
  child.kill('SIGKILL');
  await w.takes(client, w.channel, '1');
}

async function streamEmpty(w) {
  const client = w.queues();
  const error = await w.next(client, w.channel, 30, 1).then(() => null, (error) => error);
  check(error?.message.startsWith('Error 138:'), String(error));
  await w.fill(client, w.channel, '1');
  const { held, ended } = await w.nextIs(client, w.channel, '1');
  await held.ack();
  await ended;
}

async function reconnect(w, how) {
  const client = w.queues();
  await w.fill(client, w.channel, ...texts(1, 3));
  await w.takes(client, w.channel, '1');
  await w.again(how);
  await w.connected(client);
  await w.fill(client, w.channel, '4');
  await w.takes(client, w.channel, '2', '3', '4');
  await w.empty(client, w.channel);
}

async function reconnectStream(w, how) {
  const client = w.queues();
  await w.fill(client, w.channel, ...texts(1, 2));
  const first = await w.nextIs(client, w.channel, '1');
  await first.held.ack();
  await first.ended;
  const { ended } = await w.nextIs(client, w.channel, '2');
  await w.again(how);
  const lost = await ended.then(() => null, (error) => error);
  check(lost, 'a stream that was lost ended as if it were finished');
  await w.connected(client);
  const second = await w.nextIs(client, w.channel, '2');
  await second.held.ack();
  await second.ended;
  await w.empty(client, w.channel);
}

module.exports = {
  ping,
  send_receive: sendReceive,
  send_batch: sendBatch,
  send_refused: sendRefused,
  receive_empty: receiveEmpty,
  peek,
  ack_all: ackAll,
  delay,
  expiration,
  duplicate_client_ids: duplicateClientIds,
  concurrent_receivers: concurrentReceivers,
  stream_ack: streamAck,
  stream_reject: streamReject,
  stream_extend_visibility: streamExtendVisibility,
  stream_visibility: streamVisibility,
  stream_resend: streamResend,
  stream_resend_new: streamResendNew,
  stream_dead_letter: streamDeadLetter,
  stream_disconnect: streamDisconnect,
  stream_empty: streamEmpty,
  reconnect: (w) => reconnect(w, 'kill'),
  reconnect_stream: (w) => reconnectStream(w, 'kill'),
  restart: (w) => reconnect(w, 'stop'),
  restart_stream: (w) => reconnectStream(w, 'stop'),
};
