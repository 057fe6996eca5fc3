// A client that receives a message over the old stream, says so, and never settles it.
'use strict';

const { World } = require('./world.js');

const [address, channel] = process.argv.slice(2);
const world = new World(address, channel);
world.next(world.queues(), channel, 60).then(() => process.send('held'));
