"""SQLite's log is brought into the file away from the commits, and does not grow for ever."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.memory.support.stores import opened
from tests.memory.support.turns import owner, turn
from tests.support.databases import sqlite_url
from tests.support.waiting import eventually
from token_broker.memory.drivers import sqlite
from token_broker.memory.drivers.sqlite import SqliteDatabase
from token_broker.memory.ingest.group_commit import ArrivalClock
from token_broker.memory.store.turn_writes import insert_turns
from token_broker.memory.types import ArrivedTurn

PAGE = 4096
arrivals = ArrivalClock()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints all the time, and a log that is soon long."""
    for name, value in {"_CHECKPOINT_EVERY_S": 0.01, "_LONG_LOG_PAGES": 256, "_TAIL_PAGES": 32}.items():
        monkeypatch.setattr(sqlite, name, value)


def sqlite_in(folder: Path) -> SqliteDatabase:
    return SqliteDatabase(sqlite_url(folder), busy_s=1, timeout_s=10)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    async with opened(sqlite_in(tmp_path)) as database:
        yield database


async def put(database: SqliteDatabase, count: int = 1, content: str = "hello") -> None:
    batch = [ArrivedTurn(turn(content=content), arrivals.next()) for _ in range(count)]
    await database.write(partial(insert_turns, batch=batch, now_s=1.0, unknown=[(owner(), "elena")], sinks=[]))


def log_of(database: SqliteDatabase) -> Path:
    return database.path.with_name(database.path.name + "-wal")


async def in_file(database: SqliteDatabase, copy: Path) -> int:
    """How many turns the database file has by itself, without its log.

    Another process copies it: a file that this one closes takes SQLite's locks on it along.
    """
    copying = await asyncio.create_subprocess_exec("cp", database.path, copy)
    assert await copying.wait() == 0
    connection = sqlite3.connect(copy)
    try:
        return int(connection.execute("SELECT count(*) FROM turns").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not even the tables are there yet
    finally:
        connection.close()


@pytest.mark.usefixtures("often")
async def test_checkpoint_needs_no_further_commit(database: SqliteDatabase, tmp_path: Path) -> None:
    await put(database, 3)

    async def arrived() -> bool:
        return await in_file(database, tmp_path / "copy.db") == 3

    await eventually(arrived)


@pytest.mark.usefixtures("often")
async def test_log_restarts_under_constant_writes(database: SqliteDatabase) -> None:
    written = 0
    longest = 0
    while written < 24 * 1024 * 1024:
        await put(database, 20, "x" * 8000)
        written += 20 * 8000
        longest = max(longest, log_of(database).stat().st_size)
    assert longest < written / 2
    assert longest < sqlite.AUTOCHECKPOINT_PAGES * PAGE / 2  # so no commit had to


async def test_commit_checkpoints_without_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.memory.drivers.sqlite.AUTOCHECKPOINT_PAGES", 256)
    monkeypatch.setattr(sqlite, "_CHECKPOINT_EVERY_S", 60)
    async with opened(sqlite_in(tmp_path)) as database:
        for _ in range(40):
            await put(database, 20, "x" * 8000)
        assert log_of(database).stat().st_size < 3 * 256 * PAGE


@pytest.mark.usefixtures("often")
async def test_failed_checkpoint_is_retried(
    database: SqliteDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = threading.Semaphore(3)

    def failing(*arguments: Any, **options: Any) -> sqlite3.Connection:
        if failures.acquire(blocking=False):
            raise sqlite3.OperationalError("disk I/O error")
        connection: sqlite3.Connection = sqlite3.connect(*arguments, **options)
        return connection

    monkeypatch.setattr(sqlite, "sqlite3", SimpleNamespace(connect=failing, Error=sqlite3.Error))

    async def arrived() -> bool:
        await put(database)
        return await in_file(database, tmp_path / "copy.db") > 0

    await eventually(arrived)
    assert not failures.acquire(blocking=False)


async def test_close_ends_thread_and_removes_log(tmp_path: Path) -> None:
    async with opened(sqlite_in(tmp_path)) as database:
        await put(database)
        assert "memory-checkpoints" in {thread.name for thread in threading.enumerate()}
    assert "memory-checkpoints" not in {thread.name for thread in threading.enumerate()}
    assert not log_of(database).exists()
