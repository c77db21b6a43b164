"""SQLite, embedded: one thread writes, a few read; a lock beside the file keeps other processes out.

The driver is the standard library's, in threads of ours, not aiosqlite: a grouped commit is one hop to a thread then,
instead of one a call, and each hop waits for the interpreter's lock.
"""

import asyncio
import contextlib
import fcntl
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from token_broker.memory.checkpoints import SAFETY_PAGES, Checkpointer
from token_broker.memory.database import DialectName, store_error
from token_broker.memory.errors import StoreInUseError, StoreUnreachableError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = ["FileLock", "SqliteDatabase", "sqlite_path"]

R = TypeVar("R")
_READERS = 2
_CLOSE_S = 5.0

# Alembic's `op` and `context` are the process's: two stores that migrate at once use each other's connections.
_MIGRATING = threading.Lock()


def sqlite_path(url: str) -> Path:
    """The file that `sqlite+aiosqlite:///…` names."""
    return Path(url.partition(":///")[2].partition("?")[0])


class FileLock:
    """An advisory lock (fcntl) on `<database>.lock`, held while the process lives; `kill -9` frees it."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")
        self._file: int | None = None

    def take(self) -> None:
        """Raises StoreInUseError where another process holds it, OSError where it can't be made."""
        if self._file is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                raise StoreInUseError(f"{self._path} is held by another process") from None
            raise
        self._file = file

    def free(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class SqliteDatabase:
    """See `Database`. WAL and `synchronous=FULL`: what is committed has reached the disk."""

    dialect: DialectName = "sqlite"

    def __init__(self, url: str, *, busy_s: float, timeout_s: float, exclusive: bool = True) -> None:
        self.path = sqlite_path(url)
        self._busy_ms = round(busy_s * 1000)
        self._timeout_s = timeout_s
        self._lock = FileLock(self.path) if exclusive else None
        self._writer_thread = ThreadPoolExecutor(1, "memory-writer")
        self._reader_threads = ThreadPoolExecutor(_READERS, "memory-reader")
        self._closed = False
        self._writer: Engine | None = None
        self._reader: Engine | None = None
        self._kept: Connection | None = None  # the writer's thread's own, between its transactions
        self._checkpointer: Checkpointer | None = None

    def lock(self) -> None:
        """Takes the file for this process, at once, unless it is shared. Raises StoreInUseError or OSError."""
        if self._lock is not None:
            self._lock.take()

    async def open(self) -> bool:
        return await self._in(self._writer_thread, self._open)

    async def write(self, work: "Callable[[Connection], R]", *, again: bool = True) -> R:
        del again  # there is no connection to lose
        return await self._in(self._writer_thread, self._write, work)

    async def read(self, work: "Callable[[Connection], R]") -> R:
        return await self._in(self._reader_threads, self._read, work)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._dispose)
        self._writer_thread.shutdown(wait=False, cancel_futures=True)
        self._reader_threads.shutdown(wait=False, cancel_futures=True)
        if self._lock is not None:
            self._lock.free()

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[..., R], *arguments: Any) -> R:
        """Runs in a thread. Who is cancelled here, or waited too long, leaves the thread to finish its transaction."""
        if self._closed:
            raise StoreUnreachableError("closed")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
        except Exception as error:  # noqa: BLE001  # mapped, or raised as it is
            raise store_error(error) from None

    def _open(self) -> bool:
        from sqlalchemy import create_engine, event
        from sqlalchemy.pool import NullPool, QueuePool

        from token_broker.memory.schema import migrate

        if self._writer is not None:
            return False
        self.lock()
        url = f"sqlite:///{self.path}"
        writer = create_engine(url, poolclass=NullPool)
        reader = create_engine(url, poolclass=QueuePool, pool_size=_READERS, max_overflow=0)
        for each, begin in ((writer, "BEGIN IMMEDIATE"), (reader, "BEGIN")):
            event.listen(each, "connect", self._prepare)
            event.listen(each, "begin", partial(_begin, statement=begin))
        with _MIGRATING, writer.begin() as connection:
            was_empty = migrate(connection)
        self._writer, self._reader, self._checkpointer = writer, reader, Checkpointer(self.path)
        return was_empty

    def _write(self, work: "Callable[[Connection], R]") -> R:
        """On the connection of the last time, as long as its transactions end as they should."""
        if self._writer is None:
            raise StoreUnreachableError("not yet open")
        connection = self._kept or self._writer.connect()
        self._kept = None
        try:
            with connection.begin():
                return work(connection)
        finally:
            if _is_at_rest(connection):
                self._kept = connection
                if self._checkpointer is not None:
                    self._checkpointer.committed(_driver_of(connection))
            else:
                connection.close()

    def _read(self, work: "Callable[[Connection], R]") -> R:
        if self._reader is None:
            raise StoreUnreachableError("not yet open")
        with self._reader.begin() as connection:
            return work(connection)

    def _prepare(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in (
            f"busy_timeout = {self._busy_ms}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "journal_size_limit = 67108864",
            "temp_store = MEMORY",  # a statement that fails halfway is taken back: no file for each commit
            "cache_size = -8000",
            f"wal_autocheckpoint = {SAFETY_PAGES}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def _dispose(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.stop()
        self._reader_threads.shutdown(cancel_futures=True)  # first: a pool closes what is in it, not what is lent
        if self._kept is not None:
            self._kept.close()
        if self._reader is not None:
            self._reader.dispose()
        self._kept = self._writer = self._reader = None


def _is_at_rest(connection: "Connection") -> bool:
    """Whether nothing is begun, as SQLAlchemy and SQLite itself see it: a COMMIT that fails may leave that behind."""
    if connection.invalidated or connection.in_transaction():
        return False
    return not _driver_of(connection).in_transaction


def _driver_of(connection: "Connection") -> Any:
    return connection.connection.dbapi_connection


def _begin(connection: "Connection", statement: str) -> None:
    """Straight to the driver: SQLAlchemy takes longer to execute a statement than SQLite to begin."""
    connection.connection.cursor().execute(statement)
