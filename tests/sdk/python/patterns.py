"""The scenarios of events, events-store, commands and queries."""

import asyncio
import contextlib
import time
from datetime import datetime, timedelta

import kubemq
from kubemq.pubsub.events_store_subscription import EventStoreStartPosition as Start
from world import call, check, texts, until

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


async def to_events(w, client, channel, group=None):
    subscription = kubemq.EventsSubscription(channel=channel, group=group, on_receive_event_callback=print)
    return await subscribe(w, client, "subscribe_to_events", subscription)


async def to_store(w, client, channel, start, group=None, **values):
    subscription = kubemq.EventsStoreSubscription(
        channel=channel, group=group, on_receive_event_callback=print, events_store_type=start, **values
    )
    return await subscribe(w, client, "subscribe_to_events_store", subscription)


async def publish(client, channel, *bodies):
    for body in bodies:
        await call(client.publish_event, kubemq.EventMessage(channel=channel, body=body.encode()))


async def store(client, channel, *bodies):
    for body in bodies:
        result = await call(client.send_event_store, kubemq.EventStoreMessage(channel=channel, body=body.encode()))
        check(result.sent and not result.error, result)


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
    async with w.events() as client, w.events("sender") as sender:
        inbox = await to_events(w, client, w.channel)
        await ready(sender, w.channel, inbox)
        await w.again(how)
        inbox.probes = 0
        await ready(sender, w.channel, inbox)
        await publish(sender, w.channel, *texts(1, 10))
        await inbox.has(*texts(1, 10))


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


async def to_requests(w, client, kind, group=None):
    """Answers commands or queries: with what they brought, or with an error when the body asks for it."""
    subscription, response = {
        "command": (kubemq.CommandsSubscription, kubemq.CommandResponse),
        "query": (kubemq.QueriesSubscription, kubemq.QueryResponse),
    }[kind]
    subscription = subscription(w.channel, print, group)

    def handle(message):
        failed = bytes(message.body) == b"fail"
        return response(
            message, is_executed=not failed, error="it failed" if failed else "", metadata=message.metadata,
            body=b"answer to " + message.body, tags={"key": message.tags.get("key", "")},
        )

    method = "subscribe_to_commands" if kind == "command" else "subscribe_to_queries"
    return await subscribe(w, client, method, subscription, handle)


async def ask(w, client, kind, body, seconds=10, **cache):
    message = {"command": kubemq.CommandMessage, "query": kubemq.QueryMessage}[kind]
    message = message(
        channel=w.channel, metadata="metadata", body=body.encode(), tags={"key": "value"},
        timeout_in_seconds=seconds, **cache,
    )
    return await call(client.send_command if kind == "command" else client.send_query, message)


async def responders(w, client, kind, *inboxes):
    """Sends probes until every responder has seen one."""

    async def seen():
        with contextlib.suppress(Exception):
            response = await ask(w, client, kind, PROBE, 1)
            return response.is_executed and all(inbox.probes for inbox in inboxes)

    await until("the responders", seen)


async def answer(w, kind):
    async with w.requests() as client:
        inbox = await to_requests(w, client, kind)
        await responders(w, client, kind, inbox)
        response = await ask(w, client, kind, "body")
        check(response.is_executed and not response.error and response.tags["key"] == "value", response)
        if kind == "query":
            check(response.body == b"answer to body" and response.metadata == "metadata", response)
            check(not response.cache_hit, response)
        await inbox.has("body")
        (request,) = inbox.received
        check(request.metadata == "metadata" and request.tags["key"] == "value", request)
        check(request.channel == w.channel and request.id, request)


async def error(w, kind):
    async with w.requests() as client:
        await responders(w, client, kind, await to_requests(w, client, kind))
        response = await ask(w, client, kind, "fail")
        check(not response.is_executed and response.error == "it failed", response)


async def timeout(w, kind):
    async with w.requests() as client:
        started = time.monotonic()
        try:
            response = await ask(w, client, kind, "body", 1)
        except Exception as failure:
            # The asynchronous client stops waiting at the same moment as the server does.
            gave_up = w.is_async and isinstance(failure, kubemq.KubeMQTimeoutError)
            check("Error 301" in str(failure) or gave_up, failure)
        else:
            check(False, response)
        check(0.95 < time.monotonic() - started < 10, "too early or too late")


async def groups(w, kind):
    async with w.requests() as client:
        one, two = [await to_requests(w, client, kind, "group") for _ in range(2)]
        await responders(w, client, kind, one, two)
        for body in texts(1, 60):
            response = await ask(w, client, kind, body)
            check(response.is_executed, response)
        await together(texts(1, 60), one, two)


async def command_concurrent(w):
    async with w.requests() as client:
        inbox = await to_requests(w, client, "command")
        await responders(w, client, "command", inbox)
        responses = await asyncio.gather(*(ask(w, client, "command", body) for body in texts(1, 50)))
        check(all(response.is_executed for response in responses), responses)
        await together(texts(1, 50), inbox)


async def command_reconnect(w):
    async with w.requests() as client, w.requests("sender") as sender:
        inbox = await to_requests(w, client, "command")
        await responders(w, sender, "command", inbox)
        await w.again("kill")
        await responders(w, sender, "command", inbox)
        check((await ask(w, sender, "command", "body")).is_executed)


async def query_cache(w):
    async with w.requests() as client:
        inbox = await to_requests(w, client, "query")
        await responders(w, client, "query", inbox)
        cache = {"cache_key": "key", "cache_ttl_in_seconds": 2}
        for hit in (False, True, True):
            response = await ask(w, client, "query", "body", **cache)
            check(response.body == b"answer to body" and response.cache_hit == hit, response)
        await inbox.has("body")
        await asyncio.sleep(2.1)
        response = await ask(w, client, "query", "body", **cache)
        check(response.body == b"answer to body" and not response.cache_hit, response)
        await inbox.has("body", "body")


async def query_large(w):
    async with w.requests() as client:
        inbox = await to_requests(w, client, "query")
        await responders(w, client, "query", inbox)
        response = await ask(w, client, "query", LARGE)
        check(response.body == b"answer to " + LARGE.encode(), "the body of the answer changed")
        await until("the query", lambda: inbox.received)
        check(inbox.bodies() == [LARGE], "the body changed")


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
    "command_answer": lambda w: answer(w, "command"),
    "command_error": lambda w: error(w, "command"),
    "command_timeout": lambda w: timeout(w, "command"),
    "command_groups": lambda w: groups(w, "command"),
    "command_concurrent": command_concurrent,
    "command_reconnect": command_reconnect,
    "query_answer": lambda w: answer(w, "query"),
    "query_error": lambda w: error(w, "query"),
    "query_timeout": lambda w: timeout(w, "query"),
    "query_cache": query_cache,
    "query_large": query_large,
    "query_groups": lambda w: groups(w, "query"),
}
