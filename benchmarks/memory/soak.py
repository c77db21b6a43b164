"""`kill -9` of the broker at random moments under load, many times; then every acknowledged turn is looked for.

    python -m benchmarks.memory.soak [--kills 200] [--store sqlite|postgresql] [--sinks zep,http] [--seed 1]

Eight writers say one turn after the other, each again until it is acknowledged. Afterwards each acknowledged turn has
to be in the store once, in order, and at each sink (fakes for Zep, for Zep Cloud and for a receiver of webhooks) at
least once, in order; without a sink (`--sinks ""`), in SQLite's table of words, and its file has to be sound. Exits 1
where one is missing.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.memory.support.killing import Report, kill_and_check
from tests.memory.support.receiver import running_receiver
from tests.memory.support.zep import Zep, running_zep
from tests.memory.support.zep_cloud import ZepCloud, running_zep_cloud
from tests.support.databases import postgres_server, sqlite_url


async def soak(folder: Path, database_url: str, sinks: Sequence[str], kills: int, seed: int) -> Report:
    # Zep Cloud works on a session's turns in tasks, which are asked for every two seconds: it takes no more a second.
    pause_s = 0.2 if "zep_cloud" in sinks else 0
    load: dict[str, Any] = {"kills": kills, "writers": 8, "seed": seed, "longest_life_s": 1, "pause_s": pause_s}
    async with AsyncExitStack() as stack:
        zep: Zep | ZepCloud | None = None
        if "zep_cloud" in sinks:
            zep = await stack.enter_async_context(running_zep_cloud())
        elif "zep" in sinks:
            zep = await stack.enter_async_context(running_zep())
        receiver = await stack.enter_async_context(running_receiver()) if "http" in sinks else None
        return await kill_and_check(folder, database_url, zep, receiver=receiver, **load)


def run(store: str, sinks: Sequence[str], kills: int, seed: int) -> Report:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if store == "sqlite":
            return asyncio.run(soak(folder, sqlite_url(folder), sinks, kills, seed))
        with postgres_server(fsync=True) as server:
            return asyncio.run(soak(folder, asyncio.run(server.create()), sinks, kills, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--sinks", default="zep,http", help="zep or zep_cloud, http, both, or none")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    sinks = [name for name in arguments.sinks.split(",") if name]
    if unknown := set(sinks) - {"zep", "zep_cloud", "http"}:
        parser.error(f"--sinks: no fake for {', '.join(sorted(unknown))}")
    if {"zep", "zep_cloud"} <= set(sinks):
        parser.error("--sinks: a broker has one Zep")
    for store in arguments.store or ["sqlite", "postgresql"]:
        began_s = time.monotonic()
        try:
            report = run(store, sinks, arguments.kills, arguments.seed)
        except AssertionError as error:
            print(f"{store}: FAILED: {error}")
            sys.exit(1)
        indexed = "all words indexed" if store == "sqlite" else "none delivered"
        ends = f"all delivered to {' and '.join(sinks)}" if sinks else indexed
        print(
            f"{store}: {report.kills} kills in {time.monotonic() - began_s:.0f} s, {report.turns} turns acknowledged, "
            f"all there once and in order, {ends}; {report.repeated_requests} requests and "
            f"{report.repeated_deliveries} deliveries were repeated"
        )


if __name__ == "__main__":
    main()
