"""What the memory takes in a second, durably and over HTTP, beside the same database's own bare insert rate.

    python -m benchmarks.memory.turns [--seconds 4] [--store sqlite|postgresql] [--stored 0] [--connections 64]

The real broker serves in a process of its own; this one makes the load on bare sockets. `--stored` fills the store with
so many turns first. CPU is the broker's process alone, from the system's books; `a core` is what one core would take.
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
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from pydantic import SecretStr

from tests.memory.support.app import session_token
from tests.memory.support.databases import PostgresServer, postgres_server, sqlite_url
from tests.memory.support.killing import SIGNING_KEY, free_port, process
from tests.memory.support.turns import owner, turn
from token_broker.memory.database import Database, connect
from token_broker.memory.delivery import DeliveryPolicy, DeliveryWorker
from token_broker.memory.keys import ArrivalClock
from token_broker.memory.sinks.local import LocalSink
from token_broker.memory.store import Arrived, insert_turns
from token_broker.settings import Settings

SESSIONS = 256
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


class Connection(asyncio.Protocol):
    """Sends one prepared request after the other, and times each answer."""

    def __init__(self, requests: Iterator[bytes], latencies: list[float]) -> None:
        self._requests, self._latencies = requests, latencies
        self._buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.until_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found or len(rest) < int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
            self.done.set_exception(RuntimeError(self._buffer.decode()))
            self._transport.close()
            return
        self._buffer = b""
        self._latencies.append(time.perf_counter() - self._sent_s)
        if time.perf_counter() < self.until_s:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)


async def load(port: int, requests: Iterator[bytes], *, connections: int, seconds: float) -> tuple[list[float], float]:
    """Latencies in seconds, and how long it took."""
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    began_s = time.perf_counter()
    opened = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(partial(Connection, requests, latencies), "127.0.0.1", port)
        protocol.until_s = began_s + seconds
        opened.append(protocol)
    await asyncio.gather(*(protocol.done for protocol in opened))
    return latencies, time.perf_counter() - began_s


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


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def over_http(folder: Path, url: str, *, connections: int, seconds: float) -> AsyncIterator[Result]:
    settings = Settings.load(database_url=SecretStr(url), signing_keys=SIGNING_KEY)
    port = free_port()
    async with process(folder, port, url, None) as running:
        await until_it_answers(port)
        for what, path, make_body, size, callers in (
            ("single turns, 8 connections", "/conversation/turn", a_turn, 1, 8),
            (f"single turns, {connections} connections", "/conversation/turn", a_turn, 1, connections),
            ("batches of 100, 8 connections", "/memory/enrich", a_batch, 100, 8),
        ):
            requests = requests_of(settings, path, make_body)
            await load(port, requests, connections=callers, seconds=0.5)  # warm
            before_s = cpu_s(running.pid)
            latencies, took_s = await load(port, requests, connections=callers, seconds=seconds)
            used_s = cpu_s(running.pid) - before_s
            turns = len(latencies) * size
            cuts = statistics.quantiles(latencies, n=100)
            yield Result(what, turns / took_s, cuts[49] * 1000, cuts[98] * 1000, used_s / turns * 1e6)


async def until_it_answers(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = connect(SecretStr(url), timeout_s=60, patience_s=5)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def fill(database: Database, count: int, *, queue: bool) -> None:
    """Stores turns in large batches, over many sessions."""
    arrivals = ArrivalClock()
    for start in range(0, count, 2000):
        by = [owner(f"stored-session-{(start + n) % 20_000:06}") for n in range(min(2000, count - start))]
        batch = [
            Arrived(turn(f"stored-{start + n}", content(n), by=by[n], sequence=(start + n) // 20_000), arrivals.next())
            for n in range(len(by))
        ]
        unknown = [(who, "elena") for who in by]
        await database.write(partial(insert_turns, batch=batch, now_s=time.time(), unknown=unknown, queue=queue))


async def drain(url: str, count: int) -> Result:
    """A backlog to a sink that takes everything at once: what claims and settlements cost."""
    async with opened(url) as database:
        arrivals = ArrivalClock()
        for number in range(count // 30):
            who = owner(f"drained-session-{number:05}")
            batch = [Arrived(turn(f"d{n}", content(n), by=who, sequence=n + 1), arrivals.next()) for n in range(30)]
            work = partial(insert_turns, batch=batch, now_s=time.time(), unknown=[(who, "elena")], queue=True)
            await database.write(work)
        worker = DeliveryWorker(database, LocalSink(), DeliveryPolicy(), clock=time.time)
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


async def measure(folder: Path, url: str, server: PostgresServer | None, arguments: argparse.Namespace) -> None:
    seconds: float = arguments.seconds
    print(f"\n{'PostgreSQL' if server else 'SQLite'}, {arguments.stored:,} turns stored before")
    print(f"{'':<44}{'turns/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}{'a core':>10}")
    for rows in (1, 100):
        if server is None:
            rate = await asyncio.to_thread(bare_sqlite, folder, rows, seconds)
        else:
            rate = await bare_postgresql(server, url, rows, seconds, 32 if rows == 1 else 8)
        print(Result(f"the database bare, {rows} a transaction", rate).line(), flush=True)
    if arguments.stored:
        async with opened(url) as database:
            await fill(database, arguments.stored, queue=False)
    async for result in over_http(folder, url, connections=arguments.connections, seconds=seconds):
        print(result.line(), flush=True)
    print((await drain(url, arguments.backlog)).line(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--stored", type=int, default=0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--backlog", type=int, default=6000)
    arguments = parser.parse_args()
    for store in arguments.store or ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory() as name:
            if store == "sqlite":
                asyncio.run(measure(Path(name), sqlite_url(Path(name)), None, arguments))
                continue
            with postgres_server() as server:
                asyncio.run(measure(Path(name), asyncio.run(server.create()), server, arguments))


if __name__ == "__main__":
    main()
