"""What subscribers have received, and what scenarios with subscribers do again and again."""

import asyncio
import contextlib

import kubemq
from world import call, check, until

PROBE = "probe"
# The body of messages that pass the limits of every SDK just so.
LARGE = "0123456789" * 300_000


class Inbox:
    """What a subscriber has received. Probes, which show that a subscription works, are only counted."""

    def __init__(self, cancel, task=None):
        self.received = []
        self.errors = []
        self.probes = 0
        self.cancel = cancel
        self.task = task

    def put(self, message):
        if bytes(message.body) == PROBE.encode():
            self.probes += 1
        else:
            self.received.append(message)

    def bodies(self):
        return [bytes(message.body).decode() for message in list(self.received)]

    async def has(self, *expected):
        await until(f"{len(expected)} messages", lambda: len(self.received) >= len(expected))
        check(self.bodies() == list(expected), self.bodies())


async def subscribe(w, client, method, subscription, handle=None):
    """Subscribes with either kind of client; handle answers requests."""
    cancel = kubemq.AsyncCancellationToken() if w.is_async else kubemq.CancellationToken()
    inbox = Inbox(cancel)
    subscription.on_error_callback = inbox.errors.append
    name = next(name for name in vars(subscription) if name.startswith("on_receive"))
    if not w.is_async:

        def receive(message):
            if handle:
                client.send_response_message(handle(message))
            inbox.put(message)

        setattr(subscription, name, receive)
        await call(getattr(client, method), subscription, cancel)
        return inbox

    async def iterate():
        async for message in getattr(client, method)(subscription, cancel):
            if handle:
                await client.send_response(handle(message))
            inbox.put(message)

    async def iterate_again():
        # A subscription to requests ends with its connection: the application subscribes again.
        while not cancel.is_cancelled:
            with contextlib.suppress(kubemq.KubeMQError):
                await iterate()
            await asyncio.sleep(0.1)

    setattr(subscription, name, lambda message: None)
    inbox.task = asyncio.create_task(iterate_again() if handle else iterate())
    return inbox


async def publish(client, channel, *bodies):
    for body in bodies:
        await call(client.publish_event, kubemq.EventMessage(channel=channel, body=body.encode()))


async def ready(client, channel, *inboxes):
    """Sends probes until every subscriber has seen one."""

    async def seen():
        with contextlib.suppress(Exception):
            await publish(client, channel, PROBE)
        return all(inbox.probes for inbox in inboxes)

    await until("the subscriptions", seen)


async def together(expected, *members):
    """Waits until members have got as many as are expected between them, each of them some, and compares."""

    def union():
        return sum((member.bodies() for member in members), [])

    await until("all messages of the group", lambda: len(union()) >= len(expected))
    check(sorted(union()) == sorted(expected), union())
    check(all(member.received for member in members), "a member of the group got nothing")
