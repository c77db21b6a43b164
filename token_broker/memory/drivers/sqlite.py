"""SQLite, embedded: one thread writes, a few read; a lock beside the file keeps other processes out.

The driver is the standard library's, in threads of ours, not aiosqlite: a grouped commit is one hop to a thread then,
instead of one a call, and each hop waits for the interpreter's lock.
"""

import asyncio
import contextlib
import fcntl
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from token_broker.memory.drivers.checkpoints import SAFETY_PAGES, Checkpointer
from token_broker.memory.drivers.database import DialectName, store_error
from token_broker.memory.drivers.files import make_private_file, make_private_folder
from token_broker.memory.drivers.lanes import LANES, Lane, LaneThreads
from token_broker.memory.errors import StoreInUseError, StoreUnreachableError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = ["FileLock", "SqliteDatabase", "sqlite_path"]

R = TypeVar("R")
_WRITER_CACHE_KIB = 8_000
_READER_CACHE_KIB = 2_000  # each of several; the system keeps the file's pages anyway
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
        make_private_folder(self._path.parent)
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
        self._lanes = {lane: LaneThreads(lane) for lane in LANES}
        self._closed = False
        self._writer: Engine | None = None
        self._readers: dict[Lane, Engine] = {}
        self._kept: Connection | None = None  # the writer's thread's own, between its transactions
        self._checkpointer: Checkpointer | None = None

    def lock(self) -> None:
        """Takes the file for this process, at once, unless it is shared. Raises StoreInUseError or OSError."""
        if self._lock is not None:
            self._lock.take()

    async def open(self) -> bool:
        return await self._in(self._in_writer, self._open)

    async def write(self, work: "Callable[[Connection], R]", *, again: bool = True) -> R:
        del again  # there is no connection to lose
        return await self._in(self._in_writer, self._write, work)

    async def read(self, work: "Callable[[Connection], R]", *, lane: Lane = "quick") -> R:
        return await self._in(self._lanes[lane].run, self._read, work, lane)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._dispose)
        self._writer_thread.shutdown(wait=False, cancel_futures=True)
        for threads in self._lanes.values():
            threads.shut_down(wait=False)
        if self._lock is not None:
            self._lock.free()

    def _in_writer(self, work: Callable[..., R], *arguments: Any) -> "Awaitable[R]":
        return asyncio.get_running_loop().run_in_executor(self._writer_thread, work, *arguments)

    async def _in(self, run: "Callable[..., Awaitable[R]]", work: Callable[..., R], *arguments: Any) -> R:
        """Runs in a thread. Who is cancelled here, or waited too long, leaves the thread to finish its transaction."""
        if self._closed:
            raise StoreUnreachableError("closed")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await run(work, *arguments)
        except Exception as error:  # noqa: BLE001  # mapped, or raised as it is
            raise store_error(error) from None

    def _open(self) -> bool:
        from sqlalchemy import create_engine, event
        from sqlalchemy.pool import NullPool, QueuePool

        from token_broker.memory.store.migrate import migrate

        if self._writer is not None:
            return False
        self.lock()
        make_private_folder(self.path.parent)
        make_private_file(self.path)
        url = f"sqlite:///{self.path}"
        writer = create_engine(url, poolclass=NullPool)
        readers = {
            lane: create_engine(url, poolclass=QueuePool, pool_size=LANES[lane].at_once, max_overflow=0)
            for lane in self._lanes
        }
        for each in (writer, *readers.values()):
            cache_kib = _WRITER_CACHE_KIB if each is writer else _READER_CACHE_KIB
            event.listen(each, "connect", partial(self._prepare, cache_kib=cache_kib))
            event.listen(each, "begin", partial(_begin, statement="BEGIN IMMEDIATE" if each is writer else "BEGIN"))
        with _MIGRATING, writer.begin() as connection:
            was_empty = migrate(connection)
        self._writer, self._readers, self._checkpointer = writer, readers, Checkpointer(self.path)
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

    def _read(self, work: "Callable[[Connection], R]", lane: Lane) -> R:
        if (reader := self._readers.get(lane)) is None:
            raise StoreUnreachableError("not yet open")
        with reader.begin() as connection:
            return work(connection)

    def _prepare(self, connection: Any, _record: object, *, cache_kib: int) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in (
            f"busy_timeout = {self._busy_ms}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "journal_size_limit = 67108864",
            "temp_store = MEMORY",  # a statement that fails halfway is taken back: no file for each commit
            f"cache_size = -{cache_kib}",
            f"wal_autocheckpoint = {SAFETY_PAGES}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def _dispose(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.stop()
        for threads in self._lanes.values():
            threads.shut_down(wait=True)  # first: a pool closes what is in it, not what is lent
        if self._kept is not None:
            self._kept.close()
        for reader in self._readers.values():
            reader.dispose()
        self._kept = self._writer = None
        self._readers = {}


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
