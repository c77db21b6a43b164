"""What a local recall takes: how long a mint waits for what the store knows of the user, at most 300 ms.

    python -m benchmarks.memory.recall [--store sqlite|postgresql] [--stored 1000000] [--asked 100]

The store is empty but for one user, then has so many turns of others as well; the user said little, or much.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.memory.turns import content, fill, index, patient
from tests.memory.support.stores import opened
from tests.memory.support.turns import owner, turn
from tests.support.databases import postgres_server, sqlite_url
from tests.support.machine import StolenTime
from token_broker.memory.delivery.local import LocalFacts
from token_broker.memory.drivers.database import Database
from token_broker.memory.ingest.group_commit import ArrivalClock
from token_broker.memory.store.turn_writes import insert_turns
from token_broker.memory.types import ArrivedTurn
from token_broker.security.tokens import Owner

USERS = {"little": (5, 30), "much": (50, 200)}  # sessions, turns in each


async def say(database: Database, user: str, sessions: int, turns: int) -> None:
    """All that a user has said, in as many transactions as they had sessions."""
    arrivals = ArrivalClock()
    for number in range(sessions):
        who = owner(f"recalled-{user}-{number:04}", principal=user, epoch=number)
        batch = [ArrivedTurn(turn(f"r{n}", content(n), by=who, sequence=n), arrivals.next()) for n in range(turns)]
        work = partial(insert_turns, batch=batch, now_s=time.time(), unknown=[(who, "elena")], sinks=[])
        await database.write(work)
    await index(database)


async def ask(database: Database, user: str, times: int) -> list[float]:
    """How many seconds each of so many recalls took, of a session that is continued."""
    facts, who = LocalFacts(database), Owner(f"recalled-{user}-0000", user, epoch=times)
    took_s: list[float] = []
    for _ in range(times):
        began_s = time.perf_counter()
        if not await facts.facts(who, of_session=True):
            raise SystemExit(f"nothing was recalled of {user}")
        took_s.append(time.perf_counter() - began_s)
    return took_s


async def measure(url: str, stored: int, times: int) -> None:
    """An empty store, then the same with turns of others."""
    async with opened(patient(url)) as database:
        for user, (sessions, turns) in USERS.items():
            await say(database, user, sessions, turns)
        for others in (0, stored):
            await fill(database, others)
            for user, (sessions, turns) in USERS.items():
                cuts = statistics.quantiles(await ask(database, user, times), n=100)
                who = f"{sessions * turns:,} turns of the user's, {others:,} of others"
                print(f"{who:<52}{cuts[49] * 1000:>9,.1f}{cuts[98] * 1000:>9,.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--stored", type=int, default=1_000_000)
    parser.add_argument("--asked", type=int, default=100)
    arguments = parser.parse_args()
    for store in arguments.store or ["sqlite", "postgresql"]:
        print(f"\n{'PostgreSQL' if store == 'postgresql' else 'SQLite':<52}{'p50 ms':>9}{'p99 ms':>9}", flush=True)
        if store == "sqlite":
            with tempfile.TemporaryDirectory() as name:
                asyncio.run(measure(sqlite_url(Path(name)), arguments.stored, arguments.asked))
            continue
        with postgres_server(fsync=True) as server:
            url = asyncio.run(server.create())
            asyncio.run(measure(url, arguments.stored, arguments.asked))


if __name__ == "__main__":
    stolen = StolenTime()
    main()
    stolen.tell()
