"""What the memory takes in a second, durably and over HTTP, beside the same database's own bare insert rate.

    python -m benchmarks.memory.turns [--seconds 4] [--store sqlite|postgresql] [--stored 0] [--connections 8 32 64]
        [--folder /tmp]

The real broker serves in a process of its own; this one makes the load on bare sockets. CPU is the broker's process
alone, as the system counts it; `a core` is what one core would take. With `--stored` a second broker, whose store has
so many turns before, is measured beside the first, in turns with it and several rounds each, and the two are compared.

A latency is the disk's as much as ours: the first line is the disk's own; `--folder /dev/shm` leaves it out.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from pydantic import SecretStr

from benchmarks.memory.load import cpu_s, load, until_it_answers
from tests.memory.support.app import session_token
from tests.memory.support.killing import SIGNING_KEY, free_port, process
from tests.memory.support.stores import opened
from tests.memory.support.turns import owner, turn
from tests.support.databases import PostgresServer, postgres_server, sqlite_url
from tests.support.machine import StolenTime
from token_broker.memory.delivery.worker import DeliveryPolicy, DeliveryWorker
from token_broker.memory.drivers.connect import connect
from token_broker.memory.drivers.database import Database
from token_broker.memory.ingest.group_commit import ArrivalClock
from token_broker.memory.store.turn_writes import insert_turns
from token_broker.memory.types import ArrivedTurn, DeliveryBatch, Notice, SinkErasure, SinkName
from token_broker.settings import Settings

SESSIONS = 256
_FILLED_SESSIONS = 20_000
_FILLED_AT_ONCE = 5_000
_COMMIT_BYTES = 256 * 1024
_COMMITS = 64
_COMMITS_APART_S = 0.01
_TOLERANCE = 0.2  # a full store may be so much slower than an empty one
SENTENCE = "the quick brown fox jumps over a lazy dog and asks what the invoice of last month came to"
WORDS = SENTENCE.split()


@dataclass(frozen=True)
class Result:
    """One stretch of load."""

    what: str
    turns_per_s: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_us: float | None = None

    def line(self) -> str:
        def shown(value: float | None, form: str) -> str:
            return "" if value is None else format(value, form)

        a_core = None if not self.cpu_us else 1e6 / self.cpu_us
        return (
            f"{self.what:<44}{self.turns_per_s:>10,.0f}{shown(self.p50_ms, ',.1f'):>9}{shown(self.p99_ms, ',.1f'):>9}"
            f"{shown(self.cpu_us, ',.0f'):>9}{shown(a_core, ',.0f'):>10}"
        )


@dataclass(frozen=True)
class Stretch:
    """A kind of load: `callers` connections that send `size` turns in each request."""

    what: str
    path: str
    make_body: Callable[[str, int], Any]
    size: int
    callers: int


@dataclass(frozen=True)
class Broker:
    """A broker in a process of its own."""

    settings: Settings
    port: int
    pid: int


def requests_of(settings: Settings, path: str, make_body: Callable[[str, int], Any]) -> Iterator[bytes]:
    """Requests for ever, spread over the sessions."""
    tokens = {key: session_token(settings, owner(key)) for key in session_ids()}
    number = 0
    while True:
        for key, token in tokens.items():
            number += 1
            body = json.dumps(make_body(key, number)).encode()
            fields = f"Host: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}"
            yield f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body


def session_ids() -> list[str]:
    return [f"measured-session-{number:04}" for number in range(SESSIONS)]


def content(number: int) -> str:
    return " ".join(WORDS[(number + index * 7) % len(WORDS)] for index in range(15))


def a_turn(session_id: str, number: int) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "agent_id": "elena",
        "role": "user",
        "content": content(number),
        "turn_id": f"{os.getpid()}-{time.time_ns()}-{number}",
        "sequence": number,
    }


def a_batch(session_id: str, number: int) -> dict[str, Any]:
    said = [
        {"text": content(number + n), "session_id": session_id, "speaker": "user", "turn_id": f"{time.time_ns()}-{n}"}
        for n in range(100)
    ]
    return {"transcripts": said}


def stretches(connections: list[int]) -> list[Stretch]:
    """The more connections, each with one request under way, the longer each waits for the others: p50 is their number
    over the rate.
    """
    singles = [Stretch(f"single turns, {n} connections", "/conversation/turn", a_turn, 1, n) for n in connections]
    return [*singles, Stretch("batches of 100, 8 connections", "/memory/enrich", a_batch, 100, 8)]


@asynccontextmanager
async def serving(folder: Path, url: str) -> AsyncIterator[Broker]:
    settings = Settings.load(database_url=SecretStr(url), signing_keys=SIGNING_KEY)
    port = free_port()
    async with process(folder, port, url, None) as running:
        await until_it_answers(port)
        yield Broker(settings, port, running.pid)


async def run(broker: Broker, stretch: Stretch, seconds: float) -> Result:
    requests = requests_of(broker.settings, stretch.path, stretch.make_body)
    await load(broker.port, requests, connections=stretch.callers, seconds=0.5)  # warm
    before_s = cpu_s(broker.pid)
    latencies, took_s = await load(broker.port, requests, connections=stretch.callers, seconds=seconds)
    used_s = cpu_s(broker.pid) - before_s
    turns = len(latencies) * stretch.size
    cuts = statistics.quantiles(latencies, n=100)
    return Result(stretch.what, turns / took_s, cuts[49] * 1000, cuts[98] * 1000, used_s / turns * 1e6)


def middle(results: list[Result]) -> Result:
    return sorted(results, key=lambda result: result.turns_per_s)[len(results) // 2]


def patient(url: str) -> Database:
    """The store, with time for large transactions."""
    return connect(SecretStr(url), timeout_s=60, patience_s=5)


async def fill(database: Database, count: int) -> None:
    """Stores turns in large batches, over many sessions; the disk may take its time."""
    arrivals = ArrivalClock()
    for start in range(0, count, _FILLED_AT_ONCE):
        numbers = range(start, min(start + _FILLED_AT_ONCE, count))
        owners = {n % _FILLED_SESSIONS: owner(f"stored-session-{n % _FILLED_SESSIONS:06}") for n in numbers}
        batch = [
            ArrivedTurn(
                turn(f"stored-{n}", content(n), by=owners[n % _FILLED_SESSIONS], sequence=n // _FILLED_SESSIONS),
                arrivals.next(),
            )
            for n in numbers
        ]
        unknown = [(who, "elena") for who in owners.values()] if start < _FILLED_SESSIONS else []
        await database.write(partial(insert_turns, batch=batch, now_s=time.time(), unknown=unknown, sinks=[]))


class NullSink:
    """A sink that takes everything at once."""

    name: SinkName = "zep"
    max_turns = 30
    max_bytes: int | None = None
    keeps_batches = False
    takes_notices = False

    async def deliver(self, batch: DeliveryBatch) -> None:
        """Takes it."""

    async def tell(self, notice: Notice) -> None:
        """Takes it."""

    async def erase(self, erasure: SinkErasure) -> None:
        """Has nothing."""

    async def is_done(self, task: str) -> bool:
        """It has no tasks."""
        return bool(task)

    async def aclose(self) -> None:
        """Has nothing open."""


async def drain(url: str, count: int) -> Result:
    """A backlog to a sink that takes everything at once: what claims and settlements cost."""
    async with opened(patient(url)) as database:
        arrivals, drained = ArrivalClock(), time.time_ns()
        for number in range(count // 30):
            who = owner(f"drained-{drained}-{number:05}")
            batch = [ArrivedTurn(turn(f"d{n}", content(n), by=who, sequence=n + 1), arrivals.next()) for n in range(30)]
            work = partial(insert_turns, batch=batch, now_s=time.time(), unknown=[(who, "elena")], sinks=["zep"])
            await database.write(work)
        worker = DeliveryWorker(database, NullSink(), DeliveryPolicy(), clock=time.time)
        began_s, running = time.perf_counter(), asyncio.create_task(worker.run())
        while worker.counts.delivered < count // 30 * 30:  # noqa: ASYNC110  # it tells nobody, and need not
            await asyncio.sleep(0.005)
        took_s = time.perf_counter() - began_s
        running.cancel()
        await asyncio.wait({running})
        return Result("draining a backlog, 30 turns a session", worker.counts.delivered / took_s)


def bare_sqlite(folder: Path, rows: int, seconds: float) -> float:
    """Rows a second into a plain table of the same columns, so many in a transaction."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS bare (id TEXT PRIMARY KEY, s TEXT, c TEXT, n INT)")
    done, began_s = 0, time.perf_counter()
    while time.perf_counter() < began_s + seconds:
        connection.execute("BEGIN IMMEDIATE")
        batch = [(f"{began_s}-{done + n}", "measured-session", content(n), n) for n in range(rows)]
        connection.executemany("INSERT INTO bare VALUES (?, ?, ?, ?)", batch)
        connection.execute("COMMIT")
        done += rows
    connection.close()
    return done / (time.perf_counter() - began_s)


async def bare_postgresql(server: PostgresServer, url: str, rows: int, seconds: float, connections: int) -> float:
    async def insert(connection: "asyncpg.Connection", name: int) -> int:
        done = 0
        while time.perf_counter() < until_s:
            batch = [(f"{until_s}-{name}-{done + n}", "measured-session", content(n), n) for n in range(rows)]
            await connection.executemany("INSERT INTO bare VALUES ($1, $2, $3, $4)", batch)
            done += rows
        return done

    opened = [await server.connect(url) for _ in range(connections)]
    await opened[0].execute("CREATE TABLE IF NOT EXISTS bare (id TEXT PRIMARY KEY, s TEXT, c TEXT, n INT)")
    until_s = time.perf_counter() + seconds
    done = await asyncio.gather(*(insert(connection, name) for name, connection in enumerate(opened)))
    for connection in opened:
        await connection.close()
    return sum(done) / seconds


def flushes(folder: Path, seconds: float) -> Result:
    """What no software on this disk can be faster than: as much as a large commit writes, written and flushed."""
    file = os.open(folder / "flushed", os.O_RDWR | os.O_CREAT)
    page, began_s = bytes(_COMMIT_BYTES), time.perf_counter()
    latencies: list[float] = []
    try:
        os.pwrite(file, bytes(_COMMIT_BYTES * _COMMITS), 0)
        os.fsync(file)
        while time.perf_counter() < began_s + seconds:
            os.pwrite(file, page, len(latencies) % _COMMITS * _COMMIT_BYTES)
            before_s = time.perf_counter()
            os.fdatasync(file)
            latencies.append(time.perf_counter() - before_s)
            time.sleep(_COMMITS_APART_S)
    finally:
        os.close(file)
    cuts = statistics.quantiles(latencies, n=100)
    return Result("the disk bare, 256 kB flushed", len(latencies) / seconds, cuts[49] * 1000, cuts[98] * 1000)


async def bare(folder: Path, url: str, server: PostgresServer | None, seconds: float) -> None:
    print((await asyncio.to_thread(flushes, folder, seconds)).line(), flush=True)
    for rows in (1, 100):
        if server is None:
            rate = await asyncio.to_thread(bare_sqlite, folder, rows, seconds)
        else:
            rate = await bare_postgresql(server, url, rows, seconds, 32 if rows == 1 else 8)
        print(Result(f"the database bare, {rows} a transaction", rate).line(), flush=True)


async def measure(folder: Path, urls: list[str], server: PostgresServer | None, arguments: argparse.Namespace) -> None:
    """One store, which is empty, or two beside each other, of which the second has turns stored before."""
    seconds: float = arguments.seconds
    print(f"\n{'PostgreSQL' if server else 'SQLite'}")
    print(f"{'':<44}{'turns/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}{'a core':>10}")
    await bare(folder, urls[0], server, seconds)
    if len(urls) > 1:
        async with opened(patient(urls[1])) as database:
            await fill(database, arguments.stored)
    rounds = arguments.rounds if len(urls) > 1 else 1
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(serving(folder, url)) for url in urls]
        for stretch in stretches(arguments.connections):
            # In turns, so that a machine whose speed drifts drifts for both.
            found = [[await run(broker, stretch, seconds) for broker in brokers] for _ in range(rounds)]
            report(found, arguments.stored)
    report([[await drain(url, arguments.backlog) for url in urls] for _ in range(rounds)], arguments.stored)


def report(rounds: list[list[Result]], stored: int) -> None:
    """The middle of the rounds for each store, and, where there are two, how the second does beside the first."""
    for index, results in enumerate(zip(*rounds, strict=True)):
        before = f"  {stored:,} stored before: " if index else ""
        print(replace(middle(list(results)), what=before or results[0].what).line(), flush=True)
    if len(rounds[0]) > 1:
        rate = statistics.median(second.turns_per_s / first.turns_per_s for first, second in rounds)
        verdict = "within" if rate >= 1 - _TOLERANCE else "NOT within"
        print(f"  {rate:.2f} of the empty store's rate: {verdict} {_TOLERANCE:.0%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--stored", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--backlog", type=int, default=6000)
    parser.add_argument("--folder", type=Path, help="where SQLite's files are; the system's temporary folder")
    arguments = parser.parse_args()
    stores = ["empty", "filled"] if arguments.stored else ["empty"]
    for store in arguments.store or ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            if store == "sqlite":
                urls = [sqlite_url(_folder(name, which)) for which in stores]
                asyncio.run(measure(Path(name), urls, None, arguments))
                continue
            with postgres_server(fsync=True) as server:
                urls = [asyncio.run(server.create()) for _ in stores]
                asyncio.run(measure(Path(name), urls, server, arguments))


def _folder(name: str, which: str) -> Path:
    folder = Path(name, which)
    folder.mkdir()
    return folder


if __name__ == "__main__":
    stolen = StolenTime()
    main()
    stolen.tell()
