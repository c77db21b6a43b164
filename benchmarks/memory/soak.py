"""`kill -9` of the broker at random moments under load, many times; then every acknowledged turn is looked for.

    python -m benchmarks.memory.soak [--kills 200] [--store sqlite|postgresql] [--sink zep|local] [--seed 1]

Eight writers say one turn after the other, each again until it is acknowledged. Afterwards each acknowledged turn has
to be in the store once, in order, and at a fake for Zep at least once, in order; without Zep, in SQLite's index of
words, which has to be sound. Exits 1 where one is missing.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.memory.support.killing import Report, kill_and_check
from tests.memory.support.zep import running_zep
from tests.support.databases import postgres_server, sqlite_url


async def soak(folder: Path, database_url: str, sink: str, kills: int, seed: int) -> Report:
    load: dict[str, Any] = {"kills": kills, "writers": 8, "seed": seed, "longest_life_s": 1, "pause_s": 0}
    if sink == "local":
        return await kill_and_check(folder, database_url, None, **load)
    async with running_zep() as zep:
        return await kill_and_check(folder, database_url, zep, **load)


def run(store: str, sink: str, kills: int, seed: int) -> Report:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if store == "sqlite":
            return asyncio.run(soak(folder, sqlite_url(folder), sink, kills, seed))
        with postgres_server(fsync=True) as server:
            return asyncio.run(soak(folder, asyncio.run(server.create()), sink, kills, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--sink", choices=["zep", "local"], default="zep")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for store in arguments.store or ["sqlite", "postgresql"]:
        began_s = time.monotonic()
        try:
            report = run(store, arguments.sink, arguments.kills, arguments.seed)
        except AssertionError as error:
            print(f"{store}: FAILED: {error}")
            sys.exit(1)
        ends = {"zep": "all delivered", "local": "all words indexed" if store == "sqlite" else "none delivered"}
        print(
            f"{store}: {report.kills} kills in {time.monotonic() - began_s:.0f} s, {report.turns} turns acknowledged, "
            f"all there once and in order, {ends[arguments.sink]}; {report.repeated_requests} requests and "
            f"{report.repeated_deliveries} deliveries were repeated"
        )


if __name__ == "__main__":
    main()
