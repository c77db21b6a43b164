"""What an HTTP tool costs beside its own time: the check, the claim, the signature, the POST, and the way back.

    python -m benchmarks.tools [--store sqlite|postgresql] [--calls 500] [--at-once 1]

For each call the time from the call to the last byte of the tool's request is added to the time from the first byte of
its answer to the output. The aim is a median of 5 ms at most. The tool is a process of its own.
"""

import argparse
import asyncio
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import uvloop

from benchmarks.memory.turns import patient
from benchmarks.relay.timed_tool import timed_tool
from tests.hooks.support import secrets
from tests.memory.support.stores import opened
from tests.support.databases import postgres_server, sqlite_url
from tests.support.machine import StolenTime
from tests.tools.support import agent, call, order_tool
from token_broker.hooks.sender import HookSender, hook_client
from token_broker.memory.tool_claims import ToolClaims
from token_broker.tools.http_runner import HttpToolRunner

AIM_MS = 5.0
WARM_UP = 20


async def measure(url: str, tool_url: str, calls: int, at_once: int) -> list[float]:
    """The seconds that each call took beside its tool's own, with the claims in the database at `url`."""
    places = asyncio.Semaphore(at_once)
    async with opened(patient(url)) as database, hook_client() as client:
        runner = HttpToolRunner(HookSender(client, secrets()), ToolClaims(database), None)
        by = agent(order_tool(tool_url))

        async def one(number: int) -> float:
            call_id = f"call_{number}"
            async with places:
                began_ns = time.monotonic_ns()
                output = await runner.run(call(by, call_id=call_id, talk_id=f"talk-{number % 50}"))
                ended_ns = time.monotonic_ns()
            if not output.ok:
                raise SystemExit(output.text)
            tool = json.loads(output.text)
            tool_ns: int = tool["answered_ns"] - tool["received_ns"]
            return (ended_ns - began_ns - tool_ns) / 1e9

        for number in range(WARM_UP):
            await one(-1 - number)
        costs_s = await asyncio.gather(*(one(number) for number in range(calls)))
        await runner.aclose()
    return list(costs_s)


def run(work: Coroutine[Any, Any, list[float]]) -> list[float]:
    """Runs `work` on the loop that the broker has."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def report(store: str, costs_s: list[float]) -> None:
    cuts = statistics.quantiles(costs_s, n=100)
    verdict = "" if cuts[49] * 1000 <= AIM_MS else f"   above {AIM_MS:g} ms"
    print(f"{store:<16}{cuts[49] * 1000:>9,.2f}{cuts[94] * 1000:>9,.2f}{cuts[98] * 1000:>9,.2f}{verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=1)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"{'':<16}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
    with timed_tool() as tool_url:
        for store in arguments.store or ["sqlite", "postgresql"]:
            measured = partial(measure, tool_url=tool_url, calls=arguments.calls, at_once=arguments.at_once)
            if store == "sqlite":
                with tempfile.TemporaryDirectory() as name:
                    report("SQLite", run(measured(sqlite_url(Path(name)))))
                continue
            with postgres_server(fsync=True) as server:
                report("PostgreSQL", run(measured(asyncio.run(server.create()))))


if __name__ == "__main__":
    stolen = StolenTime()
    main()
    stolen.tell()
