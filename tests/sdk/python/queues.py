"""The scenarios of queues, channel management and reconnection."""

import asyncio
import contextlib
import time

import kubemq
from world import bodies, call, check, counts, texts, until


async def ping(w):
    async with w.queues() as client:
        info = await call(client.ping)
        check(info.host and info.version, info)
        check(info.server_start_time > 0 and info.server_up_time_seconds >= 0, info)


async def send_receive(w):
    async with w.queues() as client:
        message = kubemq.QueueMessage(
            channel=w.channel, id="my-id", metadata="metadata", body=b"body", tags={"key": "value"}
        )
        result = await call(client.send_queue_message_simple, message)
        check(not result.is_error and result.id == "my-id" and result.sent_at, result)
        (message,) = await w.takes(client, w.channel, "body")
        check(message.id == "my-id" and message.metadata == "metadata" and message.channel == w.channel, message)
        check(message.tags["key"] == "value" and message.from_client_id == "py", message)
        check(message.sequence == 1 and message.receive_count == 1, message)
        await w.empty(client, w.channel)


async def send_batch(w):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 10))
        await w.takes(client, w.channel, *texts(1, 10))


async def send_refused(w):
    async with w.queues() as client:
        message = kubemq.QueueMessage(channel=w.channel, tags={"key": "value"})
        for send in (client.send_queue_message_simple, client.send_queue_message):
            result = await call(send, message)
            check(result.is_error and result.error.startswith("Error 110:"), result)


async def receive_empty(w):
    async with w.queues() as client:
        started = time.monotonic()
        await w.empty(client, w.channel)
        check(time.monotonic() - started > 0.9, "answered too early")


async def peek(w):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 5))
        for _ in range(2):
            response = await call(client.peek_queue_messages, w.channel, 3, 5)
            check(bodies(response.messages) == texts(1, 3), bodies(response.messages))
        await w.takes(client, w.channel, *texts(1, 5))


async def ack_all(w):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 7))
        affected = await call(client.ack_all_queue_messages, w.channel, 1)
        check(affected == 7, affected)
        await w.empty(client, w.channel)


async def delay(w):
    async with w.queues() as client:
        started = time.monotonic()
        message = kubemq.QueueMessage(channel=w.channel, body=b"late", delay_in_seconds=2)
        result = await call(client.send_queue_message_simple, message)
        check(not result.is_error and result.delayed_to, result)
        await w.takes(client, w.channel, "late")
        check(time.monotonic() - started > 1.98, "it came too early")


async def expiration(w):
    async with w.queues() as client:
        message = kubemq.QueueMessage(channel=w.channel, body=b"old", expiration_in_seconds=1)
        result = await call(client.send_queue_message_simple, message)
        check(not result.is_error and result.expired_at, result)
        await asyncio.sleep(2)
        await w.empty(client, w.channel)


async def duplicate_client_ids(w):
    async with w.queues("same") as first:
        async with w.queues("same") as second:
            await w.fill(first, w.channel, *texts(1, 2))
            await w.fill(second, w.channel, *texts(3, 4))
            held = await w.polls(first, w.channel, "1")
            await w.takes(second, w.channel, "2", "3")
            await w.takes(first, w.channel, "4")
        await call(held.ack_all)
        await w.empty(first, w.channel)


async def concurrent_receivers(w):
    async def drain(client):
        found = []
        while messages := await w.take(client, w.channel, 7, 1):
            found += bodies(messages)
        return found

    async with w.queues("one") as first, w.queues("two") as second:
        await w.fill(first, w.channel, *texts(1, 200))
        found = sum(await asyncio.gather(drain(first), drain(second)), [])
        check(sorted(found) == sorted(texts(1, 200)), found)


async def large_message(w):
    body = b"0123456789" * 1_000_000
    limits = {"max_send_size": 100 << 20, "max_receive_size": 100 << 20}
    async with w.queues(**limits) as client:
        result = await call(client.send_queue_message_simple, kubemq.QueueMessage(channel=w.channel, body=body))
        check(not result.is_error, result.error)
        response = await w.poll(client, w.channel, 1)
        check(len(response.messages) == 1 and response.messages[0].body == body, "the body changed")
        await call(response.re_queue_all, w.channel + ".other")
        messages = await w.take(client, w.channel + ".other", 1)
        check(len(messages) == 1 and messages[0].body == body, "the body of the copy changed")


async def batch_in_parts(w):
    body = "x" * 100_000
    async with w.queues() as client:
        for _ in range(4):  # the SDK sends 4 MB at most
            await w.fill(client, w.channel, *[body] * 25)
        received = 0
        while messages := await w.take(client, w.channel, 100, 1):
            check(all(message.body == body.encode() for message in messages), "a body changed")
            received += len(messages)
        check(received == 100, f"{received} messages")


async def upstream_send(w):
    async def pour(client, task):
        for number in range(20):
            message = kubemq.QueueMessage(channel=w.channel, body=f"{task}-{number}".encode())
            result = await call(client.send_queue_message, message)
            check(not result.is_error, result.error)

    async with w.queues() as client:
        # The first send makes the stream, which the SDK does not expect to happen twice at once.
        await pour(client, 0)
        await asyncio.gather(*(pour(client, task) for task in range(1, 11)))
        messages = await w.take(client, w.channel, 220)
        check(len(messages) == 220, f"{len(messages)} messages")
        for task in range(11):
            own = [body for body in bodies(messages) if body.startswith(f"{task}-")]
            check(own == [f"{task}-{number}" for number in range(20)], own)


async def poll_auto_ack(w):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 10))
        response = await w.poll(client, w.channel, 10, auto_ack=True)
        check(bodies(response.messages) == texts(1, 10), bodies(response.messages))
        await w.polls_nothing(client, w.channel)


async def poll_empty(w):
    async with w.queues() as client:
        for _ in range(3):
            started = time.monotonic()
            # The SDK gives up half a second after the wait, so an answer that came is early enough.
            await w.polls_nothing(client, w.channel)
            check(time.monotonic() - started > 0.9, "answered too early")


async def poll_ack_all(w):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 10))
        response = await w.polls(client, w.channel, *texts(1, 10))
        await call(response.ack_all)
        await w.polls_nothing(client, w.channel)


async def poll_ack_each(w):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 10))
        response = await w.polls(client, w.channel, *texts(1, 10))
        for message in response.messages:
            await w.settle(message, "ack")
        await w.polls_nothing(client, w.channel)


async def poll_nack_all(w):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 5))
        for count in range(1, 5):
            response = await w.polls(client, w.channel, *texts(1, 5))
            check(counts(response.messages) == [count] * 5, counts(response.messages))
            await call(response.reject_all)


async def poll_nack_each(w):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 5))
        response = await w.polls(client, w.channel, *texts(1, 5))
        for index, message in enumerate(response.messages):
            await w.settle(message, "ack" if index % 2 == 0 else "nack")
        response = await w.polls(client, w.channel, "2", "4")
        check(counts(response.messages) == [2, 2], counts(response.messages))
        await call(response.ack_all)
        await w.polls_nothing(client, w.channel)


async def poll_requeue_all(w):
    other = w.channel + ".other"
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 5))
        response = await w.polls(client, w.channel, *texts(1, 5))
        await call(response.re_queue_all, other)
        response = await w.polls(client, other, *texts(1, 5))
        check(counts(response.messages) == [1] * 5, counts(response.messages))
        await call(response.ack_all)
        await w.polls_nothing(client, w.channel)


async def poll_requeue_each(w):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 4))
        response = await w.polls(client, w.channel, *texts(1, 4))
        for index, message in enumerate(response.messages):
            await w.settle(message, "re_queue", f"{w.channel}.{index % 2}")
        await call((await w.polls(client, w.channel + ".0", "1", "3")).ack_all)
        await call((await w.polls(client, w.channel + ".1", "2", "4")).ack_all)
        await w.polls_nothing(client, w.channel)


async def poll_mixed(w):
    other = w.channel + ".other"
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 6))
        response = await w.polls(client, w.channel, *texts(1, 6))
        for message in response.messages[:2]:
            await w.settle(message, "ack")
        for message in response.messages[2:4]:
            await w.settle(message, "nack")
        for message in response.messages[4:]:
            await w.settle(message, "re_queue", other)
        await call((await w.polls(client, w.channel, "3", "4")).ack_all)
        await call((await w.polls(client, other, "5", "6")).ack_all)
        await w.polls_nothing(client, w.channel)


async def poll_close(w):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 3))
        await w.polls(client, w.channel, *texts(1, 3))
    async with w.queues() as client:
        response = await w.polls(client, w.channel, *texts(1, 3))
        check(counts(response.messages) == [1] * 3, counts(response.messages))
        check(response.messages[0].sequence == 1, response.messages[0])
        await call(response.ack_all)


async def poll_dead_letter(w):
    dead = w.channel + ".dead"
    async with w.queues() as client:
        for body in texts(1, 3):
            message = kubemq.QueueMessage(
                channel=w.channel, body=body.encode(), max_receive_count=2, max_receive_queue=dead
            )
            check(not (await call(client.send_queue_message, message)).is_error)
        for _ in range(2):
            await call((await w.polls(client, w.channel, *texts(1, 3))).reject_all)
        response = await w.polls(client, dead, *texts(1, 3))
        for letter in response.messages:
            check(letter.is_re_routed and letter.re_route_from_queue == w.channel, letter)
        await call(response.ack_all)
        await w.polls_nothing(client, w.channel)


async def poll_errors(w):
    # An error that the server sends is the answer to some later poll, or raises in a settlement.
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 20))
        for batch in range(4):
            response = await w.polls(client, w.channel, *texts(batch * 5 + 1, batch * 5 + 5))
            for message in response.messages:
                await w.settle(message, "ack")
        await w.polls_nothing(client, w.channel)


async def channels(w):
    async with w.queues() as client:
        await call(client.create_queues_channel, w.channel)
        await w.fill(client, w.channel, "1", "2")
        await w.takes(client, w.channel, "1")
        (found,) = await call(client.list_queues_channels, w.channel)
        check(found.name == w.channel and found.type == "queues", found)
        check(found.incoming.messages == 2 and found.outgoing.messages == 1, found)
        await call(client.delete_queues_channel, w.channel)
        check(not await call(client.list_queues_channels, w.channel))
        await w.empty(client, w.channel)
    async with w.events() as events, w.requests() as requests:
        for client, kind in [(events, "events"), (events, "events_store"), (requests, "commands"), (requests, "queries")]:
            await call(getattr(client, f"create_{kind}_channel"), w.channel)
            (found,) = await call(getattr(client, f"list_{kind}_channels"), w.channel)
            check(found.name == w.channel and found.type == kind, found)
            await call(getattr(client, f"delete_{kind}_channel"), w.channel)
            check(not await call(getattr(client, f"list_{kind}_channels"), w.channel))


async def reconnect(w, how):
    async with w.queues() as client:
        await w.fill(client, w.channel, *texts(1, 3))
        await w.takes(client, w.channel, "1")
        await w.again(how)
        await w.connected(client)
        await w.fill(client, w.channel, "4")
        if w.is_async:
            await until("the stream", lambda: stream_is_back(w, client))
        await w.takes(client, w.channel, "2", "3", "4")
        await w.empty(client, w.channel)


async def stream_is_back(w, client):
    """Polls a queue without messages: what the SDK answers by itself while it has no stream is an error."""
    with contextlib.suppress(Exception):
        await w.poll(client, w.channel + ".none", 1, 1)
        return True


async def reconnect_stream(w, how):
    # A synchronous client tries once to connect again, and stays disconnected when the server is not back by then.
    # And each of its streams closes the connection of the other one when it was lost, and so on for ever: streams of
    # both kinds need a client each.
    patience = {} if w.is_async else {"reconnect_interval_seconds": 4}
    async with w.queues("sender", **patience) as sender, w.queues("receiver", **patience) as receiver:

        async def sent(body):
            with contextlib.suppress(Exception):
                message = kubemq.QueueMessage(channel=w.channel, body=body.encode())
                return not (await call(sender.send_queue_message, message)).is_error

        for body in texts(1, 4):
            check(await sent(body))
        await call((await w.polls(receiver, w.channel, "1", "2")).ack_all)
        # Asked behind the acknowledgement, so that it has taken effect.
        await w.polls(receiver, w.channel, "3")
        await w.again(how)
        await until("the stream to receive on", lambda: stream_is_back(w, receiver))
        response = await w.polls(receiver, w.channel, "3", "4")
        check(counts(response.messages) == [1, 1], counts(response.messages))
        await call(response.ack_all)
        await until("the stream to send on", lambda: sent("5"))
        # A send that failed on the way back may have been stored all the same.
        messages = await w.take(receiver, w.channel, 10, 1)
        check(set(bodies(messages)) == {"5"}, bodies(messages))


SCENARIOS = {
    "ping": ping,
    "send_receive": send_receive,
    "send_batch": send_batch,
    "send_refused": send_refused,
    "receive_empty": receive_empty,
    "peek": peek,
    "ack_all": ack_all,
    "delay": delay,
    "expiration": expiration,
    "duplicate_client_ids": duplicate_client_ids,
    "concurrent_receivers": concurrent_receivers,
    "large_message": large_message,
    "batch_in_parts": batch_in_parts,
    "upstream_send": upstream_send,
    "poll_auto_ack": poll_auto_ack,
    "poll_empty": poll_empty,
    "poll_ack_all": poll_ack_all,
    "poll_ack_each": poll_ack_each,
    "poll_nack_all": poll_nack_all,
    "poll_nack_each": poll_nack_each,
    "poll_requeue_all": poll_requeue_all,
    "poll_requeue_each": poll_requeue_each,
    "poll_mixed": poll_mixed,
    "poll_close": poll_close,
    "poll_dead_letter": poll_dead_letter,
    "poll_errors": poll_errors,
    "channels": channels,
    "reconnect": lambda w: reconnect(w, "kill"),
    "reconnect_stream": lambda w: reconnect_stream(w, "kill"),
    "restart": lambda w: reconnect(w, "stop"),
    "restart_stream": lambda w: reconnect_stream(w, "stop"),
}
