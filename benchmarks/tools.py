"""What an HTTP tool costs beside its own time: the check, the claim, the signature, the POST, and the way back.

    python -m benchmarks.tools [--store sqlite|postgresql] [--calls 500] [--at-once 1]

For each call the time from the call to the tool's beginning is added to the time from its end to the output. The aim is
a median of 5 ms at most. Server and runner share a process, so both sides of the sockets are in the figure.
"""

import argparse
import asyncio
import contextlib
import logging
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import structlog
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from benchmarks.memory.turns import patient
from tests.hooks.support import secrets
from tests.memory.support.stores import opened
from tests.support.databases import postgres_server, sqlite_url
from tests.support.machine import StolenTime
from tests.support.serving import serve_app
from tests.tools.support import agent, call, order_tool
from token_broker.hooks.sender import HookSender, hook_client
from token_broker.memory.tool_claims import ToolClaims
from token_broker.tools.http_runner import HttpToolRunner

AIM_MS = 5.0
WARM_UP = 20
TOOL_S = 0.02


@contextlib.asynccontextmanager
async def serve_tool() -> AsyncIterator[tuple[str, dict[str, float]]]:
    """A tool that takes `TOOL_S`; its URL, and how many seconds each call took it, by the call's id."""
    took_s: dict[str, float] = {}

    async def answer(request: Request) -> PlainTextResponse:
        body = await request.json()
        began_s = time.perf_counter()
        await asyncio.sleep(TOOL_S)
        took_s[body["call_id"]] = time.perf_counter() - began_s
        return PlainTextResponse("on its way")

    async with serve_app(Starlette(routes=[Route("/tool", answer, methods=["POST"])])) as base_url:
        yield f"{base_url}/tool", took_s


async def measure(url: str, calls: int, at_once: int) -> list[float]:
    """The seconds that each call took beside its tool's own, with the claims in the database at `url`."""
    places = asyncio.Semaphore(at_once)
    async with opened(patient(url)) as database, serve_tool() as (tool_url, tool_s), hook_client() as client:
        runner = HttpToolRunner(HookSender(client, secrets()), ToolClaims(database), None)
        by = agent(order_tool(tool_url))

        async def one(number: int) -> float:
            call_id = f"call_{number}"
            async with places:
                began_s = time.perf_counter()
                output = await runner.run(call(by, call_id=call_id, talk_id=f"talk-{number % 50}"))
                took_s = time.perf_counter() - began_s
            if not output.ok:
                raise SystemExit(output.text)
            return took_s - tool_s[call_id]

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
    for store in arguments.store or ["sqlite", "postgresql"]:
        if store == "sqlite":
            with tempfile.TemporaryDirectory() as name:
                report("SQLite", run(measure(sqlite_url(Path(name)), arguments.calls, arguments.at_once)))
            continue
        with postgres_server(fsync=True) as server:
            url = asyncio.run(server.create())
            report("PostgreSQL", run(measure(url, arguments.calls, arguments.at_once)))


if __name__ == "__main__":
    stolen = StolenTime()
    main()
    stolen.tell()
