"""What a scenario gets: clients of one kind or the other behind the same calls, and a channel of its own."""

import asyncio
import contextlib
import inspect
import time

import kubemq


def check(condition, text=""):
    if not condition:
        raise AssertionError(text)


async def until(what, probe, seconds=30):
    """Calls probe until it returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        check(time.monotonic() < deadline, f"waited {seconds} s in vain for {what}")
        await asyncio.sleep(0.02)


async def call(method, *arguments, **named):
    """Calls a method of either kind of client: what blocks goes to a thread."""
    if inspect.iscoroutinefunction(method):
        return await method(*arguments, **named)
    return await asyncio.to_thread(method, *arguments, **named)


class World:
    def __init__(self, mode, address, channel, again):
        self.is_async = mode == "async"
        self.address = address
        self.channel = channel
        self.again = again

    @contextlib.asynccontextmanager
    async def _client(self, name, client_id, **config):
        config = kubemq.ClientConfig(address=self.address, client_id=client_id, **config)
        if self.is_async:
            client = getattr(kubemq, "Async" + name)(config=config)

            async def connects():
                with contextlib.suppress(kubemq.KubeMQError):
                    await client.connect()
                    return True

            # The library waits before it looks for a server again that was gone a moment ago.
            await until("the connection", connects)
        else:
            client = await asyncio.to_thread(getattr(kubemq, name), config=config)
        try:
            yield client
        finally:
            await call(client.close)

    def queues(self, client_id="py", **config):
        return self._client("QueuesClient", client_id, **config)

    def events(self, client_id="py", **config):
        return self._client("PubSubClient", client_id, **config)

    def requests(self, client_id="py", **config):
        return self._client("CQClient", client_id, **config)

    async def poll(self, client, channel, most, wait=10, auto_ack=False):
        named = {"wait_timeout_seconds" if self.is_async else "wait_timeout_in_seconds": wait}
        response = await call(client.receive_queue_messages, channel, max_messages=most, auto_ack=auto_ack, **named)
        check(not response.is_error, response.error)
        return response

    async def settle(self, message, how, *arguments):
        """Settles one message."""
        await call(getattr(message, "async_" + how if self.is_async else how), *arguments)

    async def take(self, client, channel, most, wait=10):
        """Receives and acknowledges by one call."""
        if self.is_async:
            return (await self.poll(client, channel, most, wait, auto_ack=True)).messages
        response = await call(client.pull, channel, most, wait)
        check(not response.is_error, response.error)
        return response.messages

    async def takes(self, client, channel, *expected):
        messages = await self.take(client, channel, len(expected))
        check(bodies(messages) == list(expected), f"{channel} has {bodies(messages)} instead of {list(expected)}")
        return messages

    async def empty(self, client, channel):
        messages = await self.take(client, channel, 1, 1)
        check(not messages, f"{channel} has {bodies(messages)}")

    async def fill(self, client, channel, *texts):
        messages = [kubemq.QueueMessage(channel=channel, body=text.encode()) for text in texts]
        answer = await call(client.send_queue_messages_batch, messages)
        check(len(answer.results) == len(texts) and not answer.have_errors, answer)

    async def polls(self, client, channel, *expected):
        response = await self.poll(client, channel, len(expected))
        check(bodies(response.messages) == list(expected), f"{channel} gave {bodies(response.messages)}")
        return response

    async def polls_nothing(self, client, channel):
        response = await self.poll(client, channel, 10, 1)
        check(not response.messages, f"{channel} gave {bodies(response.messages)}")

    async def connected(self, client):
        """Waits until a connection that was lost is back: the SDK does not repeat calls, the application does."""

        async def answers():
            with contextlib.suppress(Exception):
                return await call(client.ping)

        await until("the connection", answers)



def texts(first, last):
    return [str(number) for number in range(first, last + 1)]


def bodies(messages):
    return [bytes(message.body).decode() for message in messages]


def counts(messages):
    return [message.receive_count for message in messages]
