"""Plays scenarios with kubemq for Python, unmodified: its synchronous or its asynchronous clients.

Prints one JSON line per scenario. When a scenario needs the server to end and to be started again, it prints
{"request":"kill"} or {"request":"stop"} and waits for a line on its standard input.
"""

import asyncio
import json
import logging
import sys
import time
import traceback

import commands_queries
import events
import queues
import store
from world import World

# A scenario gets two minutes: most take none, some wait for a delay.
SCENARIO_SECONDS = 120

SCENARIOS = queues.SCENARIOS | events.SCENARIOS | store.SCENARIOS | commands_queries.SCENARIOS


def say(**line):
    print(json.dumps(line), flush=True)


def where(error):
    """Names the line of a scenario that an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    helpers = ("main.py", "world.py", "inbox.py")
    scenario = [frame for frame in frames if frame.filename.startswith(sys.path[0]) and not frame.filename.endswith(helpers)]
    frame = (scenario or frames)[-1]
    return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"


async def again(how):
    say(request=how)
    await asyncio.to_thread(sys.stdin.readline)


async def main():
    mode, address, *scenarios = sys.argv[1:]
    for scenario in scenarios:
        world = World(mode, address, f"{mode}.{scenario}", again)
        started = time.monotonic()
        try:
            await asyncio.wait_for(SCENARIOS[scenario](world), SCENARIO_SECONDS)
        except Exception as error:  # whatever a scenario throws is its result
            detail = f"{where(error)}: {type(error).__name__}: {error}"
            say(scenario=scenario, result="failed", detail=detail)
        else:
            say(scenario=scenario, result="passed", detail=f"{(time.monotonic() - started) * 1000:.0f} ms")


# The SDK reports lost connections there, which are part of the scenarios.
logging.disable(logging.CRITICAL)
asyncio.run(main())
