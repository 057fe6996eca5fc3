"""The scenarios of events."""

import asyncio

import kubemq
from inbox import LARGE, publish, ready, subscribe, together
from world import call, check, texts, until


async def to_events(w, client, channel, group=None):
    subscription = kubemq.EventsSubscription(channel=channel, group=group, on_receive_event_callback=print)
    return await subscribe(w, client, "subscribe_to_events", subscription)


async def events_send(w):
    async with w.events() as client:
        inbox = await to_events(w, client, w.channel)
        await ready(client, w.channel, inbox)
        message = kubemq.EventMessage(
            channel=w.channel, id="my-id", metadata="metadata", body=b"body", tags={"key": "value"}
        )
        # The synchronous client sends everything over its stream.
        await call(client.send_event_unary if w.is_async else client.publish_event, message)
        await inbox.has("body")
        (event,) = inbox.received
        check(event.id == "my-id" and event.metadata == "metadata" and event.channel == w.channel, event)
        check(event.tags["key"] == "value", event)


async def events_stream(w):
    async with w.events() as client:
        inbox = await to_events(w, client, w.channel)
        await ready(client, w.channel, inbox)
        await publish(client, w.channel, *texts(1, 100))
        await inbox.has(*texts(1, 100))


async def events_fan_out(w):
    async with w.events() as client:
        inboxes = [await to_events(w, client, w.channel) for _ in range(2)]
        await ready(client, w.channel, *inboxes)
        await publish(client, w.channel, *texts(1, 20))
        for inbox in inboxes:
            await inbox.has(*texts(1, 20))


async def events_groups(w):
    async with w.events() as client:
        one, two = [await to_events(w, client, w.channel, "group") for _ in range(2)]
        other, single = await to_events(w, client, w.channel, "other"), await to_events(w, client, w.channel)
        await ready(client, w.channel, one, two, other, single)
        await publish(client, w.channel, *texts(1, 60))
        await single.has(*texts(1, 60))
        await other.has(*texts(1, 60))
        await together(texts(1, 60), one, two)


async def events_group_left(w):
    async with w.events() as client:
        stays, leaves = [await to_events(w, client, w.channel, "group") for _ in range(2)]
        await ready(client, w.channel, stays, leaves)
        leaves.cancel.cancel()
        rounds = 0

        # Until the server has noticed, some may still go to who left.
        async def reaches():
            nonlocal rounds
            rounds += 1
            bodies = [f"{rounds}-{number}" for number in texts(1, 20)]
            await publish(client, w.channel, *bodies)
            for _ in range(20):
                if stays.bodies()[-20:] == bodies:
                    return True
                await asyncio.sleep(0.02)

        await until("a round that reaches the one who stays", reaches)


async def events_wildcards(w):
    async with w.events() as client:
        star, rest = await to_events(w, client, w.channel + ".*"), await to_events(w, client, w.channel + ".>")
        await ready(client, w.channel + ".p", star, rest)
        await publish(client, w.channel + ".a.b", "deep")
        await publish(client, w.channel + ".a", "flat")
        await rest.has("deep", "flat")
        await star.has("flat")
        check([event.channel for event in rest.received] == [w.channel + ".a.b", w.channel + ".a"], rest.received)


async def events_large(w):
    async with w.events() as client:
        inbox = await to_events(w, client, w.channel)
        await ready(client, w.channel, inbox)
        await publish(client, w.channel, LARGE)
        await until("the event", lambda: inbox.received)
        check(inbox.bodies() == [LARGE], "the body changed")


async def events_idle(w):
    pings = kubemq.KeepAliveConfig(ping_interval_in_seconds=5)
    async with w.events(keep_alive=pings) as client, w.events("sender") as sender:
        inbox = await to_events(w, client, w.channel)
        await ready(sender, w.channel, inbox)
        await asyncio.sleep(17)
        # What is sent while a subscription is lost does not come: this one was never.
        await publish(sender, w.channel, *texts(1, 10))
        await inbox.has(*texts(1, 10))
        check(not inbox.errors, inbox.errors)


async def events_reconnect(w, how):
    async with w.events() as client:
        async with w.events("sender") as sender:
            inbox = await to_events(w, client, w.channel)
            await ready(sender, w.channel, inbox)
        await w.again(how)
        inbox.probes = 0
        # A sender of its own: one whose stream was lost may stay disconnected.
        async with w.events("sender") as sender:
            await ready(sender, w.channel, inbox)
            await publish(sender, w.channel, *texts(1, 10))
            await inbox.has(*texts(1, 10))


SCENARIOS = {
    "events_send": events_send,
    "events_stream": events_stream,
    "events_fan_out": events_fan_out,
    "events_groups": events_groups,
    "events_group_left": events_group_left,
    "events_wildcards": events_wildcards,
    "events_large": events_large,
    "events_idle": events_idle,
    "events_reconnect": lambda w: events_reconnect(w, "kill"),
    "events_restart": lambda w: events_reconnect(w, "stop"),
}
