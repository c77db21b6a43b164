"""What recall finds, how long it takes, and how much later it makes the event loop.

    python -m benchmarks.memory.recall [--store sqlite|postgresql] [--stored 1000000] [--asked 100]

First the pairs of `tests/memory/words/pairs.py`: what one user said in many languages, and what they ask later. Then
the waits of a user who said little, or much, beside so many turns of others: one question at a time, and eight at once.
The loop's lateness is measured by a timer that should ring every millisecond, while eight are asked at once.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.memory.turns import fill, patient
from tests.memory.support.stores import opened
from tests.memory.support.turns import owner, turn
from tests.memory.words.pairs import PAIRS, SMALL_TALK, UNANSWERED
from tests.support.databases import postgres_server, sqlite_url
from tests.support.machine import StolenTime
from token_broker.memory.drivers.database import Database
from token_broker.memory.ingest.group_commit import ArrivalClock
from token_broker.memory.store.turn_writes import insert_turns
from token_broker.memory.turn_search import TurnSearch
from token_broker.memory.types import ArrivedTurn
from token_broker.security.tokens import Owner

USERS = {"little": (5, 30), "much": (50, 200)}  # sessions, turns in each
_FUNCTION_WORDS = (
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "that",
    "for",
    "on",
    "with",
    "was",
    "my",
    "we",
    "have",
)
_VOCABULARY = 8_000
_AT_ONCE = 8
_TICK_S = 0.001
_chance = random.Random(1)
_words = ["".join(_chance.choices("abcdefghiklmnoprstuvw", k=_chance.randint(4, 11))) for _ in range(_VOCABULARY)]
_weights = [1 / (rank + 5) for rank in range(_VOCABULARY)]  # a few words are frequent, most are rare


def sentence() -> str:
    return " ".join([*_chance.choices(_FUNCTION_WORDS, k=8), *_chance.choices(_words, _weights, k=8)])


def question() -> str:
    return f"What did I say about the {' and the '.join(_chance.choices(_words, _weights, k=4))}?"


async def say(database: Database, user: str, sessions: Sequence[Sequence[str]]) -> Owner:
    """All that a user has said, in as many transactions as they had sessions; the owner of one more session."""
    arrivals = ArrivalClock()
    for number, said in enumerate(sessions):
        who = owner(f"recalled-{user}-{number:04}", principal=user, epoch=number)
        batch = [ArrivedTurn(turn(f"r{n}", text, by=who, sequence=n), arrivals.next()) for n, text in enumerate(said)]
        work = partial(insert_turns, batch=batch, now_s=time.time(), unknown=[(who, "elena")], sinks=[])
        await database.write(work)
    return owner(f"recalled-{user}-asks", principal=user, epoch=len(sessions))


async def pairs(database: Database) -> None:
    """How many pairs are found, and how many questions find something that is wrong."""
    said = [*(text for text, _ in PAIRS), *SMALL_TALK]
    who, search = await say(database, "many", [said[part::4] for part in range(4)]), TurnSearch(database)
    told = [[each.content for each in await search.find(who, asked, limit=3)] for _, asked in PAIRS]
    found = sum(text in texts for (text, _), texts in zip(PAIRS, told, strict=True))
    wrong = sum(any(text != other for other in texts) for (text, _), texts in zip(PAIRS, told, strict=True))
    answered = [asked for asked in UNANSWERED if await search.find(who, asked, limit=3)]
    print(f"{found} of {len(PAIRS)} pairs found, {wrong} with a wrong turn among the first three; ", end="")
    print(f"{len(answered)} of {len(UNANSWERED)} questions without an answer found something", flush=True)


async def ask(search: TurnSearch, who: Owner, times: int, at_once: int) -> tuple[list[float], list[float]]:
    """How many seconds each question took, and how late the loop was meanwhile."""
    took_s: list[float] = []
    late_s: list[float] = []

    async def one() -> None:
        began_s = time.perf_counter()
        await search.find(who, question(), limit=5)
        took_s.append(time.perf_counter() - began_s)

    async def watch() -> None:
        while True:
            due_s = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            late_s.append(time.perf_counter() - due_s)

    watching = asyncio.create_task(watch())
    for _ in range(max(1, times // at_once)):
        await asyncio.gather(*(one() for _ in range(at_once)))
    watching.cancel()
    return took_s, late_s


async def measure(url: str, stored: int, times: int) -> None:
    """An empty store, then the same with turns of others."""
    async with opened(patient(url)) as database:
        await pairs(database)
        users = {
            f"{sessions * turns:,} turns of the user's": await say(
                database, user, [[sentence() for _ in range(turns)] for _ in range(sessions)]
            )
            for user, (sessions, turns) in USERS.items()
        }
        search = TurnSearch(database)
        for others in (0, stored):
            await fill(database, others)
            for name, who in users.items():
                for at_once in (1, _AT_ONCE):
                    took_s, late_s = await ask(search, who, times, at_once)
                    cuts, late = statistics.quantiles(took_s, n=100), statistics.quantiles(late_s, n=100)
                    what = f"{name}, {others:,} of others, {at_once} at once"
                    shown = (cuts[49], cuts[98], late[98], max(late_s))
                    print(f"{what:<56}{''.join(f'{each * 1000:>10,.1f}' for each in shown)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--stored", type=int, default=1_000_000)
    parser.add_argument("--asked", type=int, default=100)
    arguments = parser.parse_args()
    for store in arguments.store or ["sqlite", "postgresql"]:
        name = "PostgreSQL" if store == "postgresql" else "SQLite"
        print(f"\n{name:<56}{'p50 ms':>10}{'p99 ms':>10}{'late p99':>10}{'late max':>10}", flush=True)
        if store == "sqlite":
            with tempfile.TemporaryDirectory() as folder:
                asyncio.run(measure(sqlite_url(Path(folder)), arguments.stored, arguments.asked))
            continue
        with postgres_server(fsync=True) as server:
            url = asyncio.run(server.create())
            asyncio.run(measure(url, arguments.stored, arguments.asked))


if __name__ == "__main__":
    stolen = StolenTime()
    main()
    stolen.tell()
