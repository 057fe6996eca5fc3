"""The scenarios of commands and queries."""

import asyncio
import contextlib
import time

import kubemq
from inbox import LARGE, PROBE, subscribe, together
from world import call, check, texts, until


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
        inbox.probes = 0
        await responders(w, sender, "command", inbox)


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
