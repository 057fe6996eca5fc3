"""The scenarios of events-store."""

import asyncio
import time
from datetime import datetime, timedelta

import kubemq
from inbox import PROBE, subscribe, together
from kubemq.pubsub.events_store_subscription import EventStoreStartPosition as Start
from world import call, check, texts, until


async def to_store(w, client, channel, start, group=None, **values):
    subscription = kubemq.EventsStoreSubscription(
        channel=channel, group=group, on_receive_event_callback=print, events_store_type=start, **values
    )
    return await subscribe(w, client, "subscribe_to_events_store", subscription)


async def store(client, channel, *bodies):
    for body in bodies:
        result = await call(client.send_event_store, kubemq.EventStoreMessage(channel=channel, body=body.encode()))
        check(result.sent and not result.error, result)


async def store_send(w):
    async with w.events() as client:
        message = kubemq.EventStoreMessage(
            channel=w.channel, id="my-id", metadata="metadata", body=b"body", tags={"key": "value"}
        )
        result = await call(client.send_event_store, message)
        check(result.sent and result.id == "my-id", result)
        inbox = await to_store(w, client, w.channel, Start.StartFromFirst)
        await inbox.has("body")
        (event,) = inbox.received
        check(event.id == "my-id" and event.metadata == "metadata" and event.channel == w.channel, event)
        check(event.tags["key"] == "value" and event.sequence == 1, event)
        check(abs(event.timestamp.timestamp() - time.time()) < 60, event)


async def store_stream(w):
    async with w.events() as client:
        messages = [kubemq.EventStoreMessage(channel=w.channel, body=body.encode()) for body in texts(1, 100)]
        results = [await call(client.send_event_store, message) for message in messages]
        check([(result.sent, result.id) for result in results] == [(True, message.id) for message in messages], results)
        inbox = await to_store(w, client, w.channel, Start.StartFromFirst)
        await inbox.has(*texts(1, 100))


async def first_new(w, client, inbox):
    """Stores one message after the other until the subscriber gets one."""
    number = 0

    async def arrived():
        nonlocal number
        number += 1
        await store(client, w.channel, f"new {number}")
        return inbox.received

    return (await until("a new event", arrived))[0]


async def store_new_only(w):
    async with w.events() as client:
        await store(client, w.channel, *texts(1, 3))
        event = await first_new(w, client, await to_store(w, client, w.channel, Start.StartFromNew))
        check(event.body.startswith(b"new") and event.sequence > 3, event)


async def store_from(w, first, start, **values):
    """Stores ten, expects all from number first on, and then what is stored afterwards."""
    async with w.events() as client:
        await store(client, w.channel, *texts(1, 10))
        inbox = await to_store(w, client, w.channel, start, **values)
        await inbox.has(*texts(first, 10))
        await store(client, w.channel, *texts(11, 12))
        await inbox.has(*texts(first, 12))
        check([event.sequence for event in inbox.received] == list(range(first, 13)), inbox.received)


async def store_sequence_ahead(w):
    async with w.events() as client:
        await store(client, w.channel, *texts(1, 3))
        inbox = await to_store(w, client, w.channel, Start.StartAtSequence, events_store_sequence_value=4)
        event = await first_new(w, client, inbox)
        check(event.body == b"new 1" and event.sequence == 4, event)


async def store_time(w):
    async with w.events() as client:
        await store(client, w.channel, *texts(1, 5))
        await asyncio.sleep(2.5)
        moment = datetime.now() - timedelta(seconds=1)
        await store(client, w.channel, *texts(6, 10))
        inbox = await to_store(w, client, w.channel, Start.StartAtTime, events_store_start_time=moment)
        await inbox.has(*texts(6, 10))


async def store_delta(w):
    async with w.events() as client:
        await store(client, w.channel, *texts(1, 5))
        await asyncio.sleep(5)
        await store(client, w.channel, *texts(6, 10))
        inbox = await to_store(w, client, w.channel, Start.StartAtTimeDelta, events_store_time_delta_seconds=3)
        await inbox.has(*texts(6, 10))


async def store_groups(w):
    async with w.events("one") as one, w.events("two") as two:
        members = [await to_store(w, client, w.channel, Start.StartFromFirst, "group") for client in (one, two)]

        async def both():
            await store(one, w.channel, PROBE)
            return all(member.probes for member in members)

        await until("both members", both)
        await store(one, w.channel, *texts(1, 100))
        await together(texts(1, 100), *members)
        for member in members:
            sequences = [event.sequence for event in member.received]
            check(sequences == sorted(sequences), sequences)


async def store_resume(w):
    async with w.events("sender") as sender, w.events("resumes") as client:
        await store(sender, w.channel, *texts(1, 5))
        inbox = await to_store(w, client, w.channel, Start.StartFromFirst)
        await inbox.has(*texts(1, 5))
        inbox.cancel.cancel()
        await store(sender, w.channel, *texts(6, 8))
        inbox = await to_store(w, client, w.channel, Start.StartFromFirst)
        await inbox.has(*texts(6, 8))


async def store_closed(w):
    async with w.events("sender") as sender:
        await store(sender, w.channel, *texts(1, 5))
        async with w.events("closes") as client:
            inbox = await to_store(w, client, w.channel, Start.StartFromFirst)
            await inbox.has(*texts(1, 5))
        await store(sender, w.channel, *texts(6, 8))
        async with w.events("closes") as client:
            inbox = await to_store(w, client, w.channel, Start.StartFromFirst)
            await until("the last event", lambda: "8" in inbox.bodies())
            bodies = inbox.bodies()
            check(len(bodies) >= 3 and bodies == texts(9 - len(bodies), 8), bodies)


async def store_reconnect(w, how):
    async with w.events() as client:
        async with w.events("sender") as sender:
            inbox = await to_store(w, client, w.channel, Start.StartFromFirst)
            await store(sender, w.channel, *texts(1, 5))
            await inbox.has(*texts(1, 5))
        await w.again(how)
        # A sender of its own: this SDK waits for ever for a result that was lost with its stream.
        async with w.events("sender") as sender:
            await store(sender, w.channel, *texts(6, 10))
            await until("the last event", lambda: "10" in inbox.bodies())
        # What was on its way when the server ended may come twice.
        check(list(dict.fromkeys(inbox.bodies())) == texts(1, 10), inbox.bodies())


SCENARIOS = {
    "store_send": store_send,
    "store_stream": store_stream,
    "store_new_only": store_new_only,
    "store_first": lambda w: store_from(w, 1, Start.StartFromFirst),
    "store_last": lambda w: store_from(w, 10, Start.StartFromLast),
    "store_sequence": lambda w: store_from(w, 4, Start.StartAtSequence, events_store_sequence_value=4),
    "store_sequence_ahead": store_sequence_ahead,
    "store_time": store_time,
    "store_delta": store_delta,
    "store_groups": store_groups,
    "store_resume": store_resume,
    "store_closed": store_closed,
    "store_reconnect": lambda w: store_reconnect(w, "kill"),
    "store_restart": lambda w: store_reconnect(w, "stop"),
}
