"""SQLite, embedded: one thread writes, a few read, one checkpoints; a lock beside the file keeps other processes out.

The driver is the standard library's, in threads of ours, not aiosqlite: a group commit is one hop to a thread then,
instead of one a call, and each hop waits for the interpreter's lock.

Its files are private to the broker's user, on a disk that keeps a reserve (`DiskSpace`).
"""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from token_broker.memory.drivers.database import READ_POOLS, DialectName, PoolName, pool_is_full, store_error
from token_broker.memory.store_errors import StoreInUseError, StoreUnreachableError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = [
    "AUTOCHECKPOINT_PAGES",
    "Checkpointer",
    "DiskSpace",
    "FileLock",
    "ReaderThreads",
    "SqliteDatabase",
    "free_bytes_of",
    "make_private_file",
    "make_private_folder",
    "reusable_bytes",
    "sqlite_path",
]

log = structlog.get_logger(__name__)
R = TypeVar("R")
_WRITER_CACHE_KIB = 8_000
_READER_CACHE_KIB = 2_000  # for each of several; the operating system caches the file's pages as well
_CLOSE_S = 5.0
_SCRUB_TRIES = 10
_SCRUB_PAUSE_S = 0.2

_CHECKPOINT_EVERY_S = 1.0
_LONG_LOG_PAGES = 4_096
_TAIL_PAGES = 400  # the writer may delay a commit's callers for so many
_CHECKPOINT_TRIES = 4
_CHECKPOINTER_STOP_S = 4.0
_PASSIVE = "PRAGMA wal_checkpoint(PASSIVE)"  # waits for no reader and no writer, and neither waits for it

# SQLite's own checkpoint within a commit, as a last resort: for a thread that fails, or cannot keep up.
AUTOCHECKPOINT_PAGES = 4 * _LONG_LOG_PAGES

# Alembic's `op` and `context` are global: two stores that migrate at once would use each other's connections.
_MIGRATING = threading.Lock()
_OTHERS = 0o077
_SUFFIXES = ("", "-wal", "-shm", "-journal", ".lock", ".signing-key")
_CHECK_EVERY_S = 1.0
_CHECK_EVERY_BYTES = 16 * 1024 * 1024  # given to the store: a fast writer fills a small disk within a second


def sqlite_path(url: str) -> Path:
    """The file that `sqlite+aiosqlite:///…` names."""
    return Path(url.partition(":///")[2].partition("?")[0])


class SqliteDatabase:
    """See `Database`. WAL and `synchronous=FULL`: what is committed has reached the disk."""

    dialect: DialectName = "sqlite"

    def __init__(self, url: str, *, busy_s: float, timeout_s: float, exclusive: bool = True) -> None:
        self.path = sqlite_path(url)
        self._busy_ms = round(busy_s * 1000)
        self._timeout_s = timeout_s
        self._lock = FileLock(self.path) if exclusive else None
        self._writer_thread = ThreadPoolExecutor(1, "memory-writer")
        self._reader_threads = {name: ReaderThreads(name) for name in READ_POOLS}
        self._closed = False
        self._writer: Engine | None = None
        self._readers: dict[PoolName, Engine] = {}
        self._kept: Connection | None = None  # the writer's connection, between its transactions
        self._checkpointer: Checkpointer | None = None

    def lock(self) -> None:
        """Takes the file for this process, at once, unless it is shared. Raises StoreInUseError or OSError."""
        if self._lock is not None:
            self._lock.take()

    async def open(self) -> bool:
        return await self._in_thread(self._run_writer, self._open)

    async def write(
        self, work: "Callable[[Connection], R]", *, idempotent: bool = True, one_statement: bool = False
    ) -> R:
        del idempotent, one_statement  # there is no connection to lose, and no way to the database
        return await self._in_thread(self._run_writer, self._write, work)

    async def read(self, work: "Callable[[Connection], R]", *, pool: PoolName = "quick") -> R:
        def read() -> R:
            if (reader := self._readers.get(pool)) is None:
                raise StoreUnreachableError("not yet open")
            with reader.begin() as connection:
                return work(connection)

        return await self._in_thread(self._reader_threads[pool].run, read)

    async def scrub_files(self) -> bool:
        """Empties the log: it still has what was overwritten in the file; whether it could. Raises StoreError."""

        def truncate() -> bool:
            connection = sqlite3.connect(self.path, timeout=self._busy_ms / 1000, isolation_level=None)
            with contextlib.closing(connection):
                busy, _pages, _copied = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy

        for attempt in range(_SCRUB_TRIES):
            if attempt:
                await asyncio.sleep(_SCRUB_PAUSE_S)  # for a reader that holds the log
            if await self._in_thread(self._run_writer, truncate):
                return True
        return False

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True

        def dispose() -> None:
            if self._checkpointer is not None:
                self._checkpointer.stop()
            for threads in self._reader_threads.values():
                threads.shut_down(wait=True)  # first: a pool closes only the connections that are not in use
            if self._kept is not None:
                self._kept.close()
            for reader in self._readers.values():
                reader.dispose()
            self._kept = self._writer = None
            self._readers = {}

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.get_running_loop().run_in_executor(self._writer_thread, dispose)
        self._writer_thread.shutdown(wait=False, cancel_futures=True)
        for threads in self._reader_threads.values():
            threads.shut_down(wait=False)
        if self._lock is not None:
            self._lock.release()

    def _run_writer(self, work: Callable[..., R], *arguments: Any) -> "Awaitable[R]":
        return asyncio.get_running_loop().run_in_executor(self._writer_thread, work, *arguments)

    async def _in_thread(self, run: "Callable[..., Awaitable[R]]", work: Callable[..., R], *arguments: Any) -> R:
        """Runs `work` in a thread. A caller that is cancelled or times out leaves it to finish its transaction."""
        if self._closed:
            raise StoreUnreachableError("closed")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await run(work, *arguments)
        except Exception as error:  # noqa: BLE001  # mapped, or raised unchanged
            raise store_error(error) from None

    def _open(self) -> bool:
        from sqlalchemy import create_engine, event
        from sqlalchemy.pool import NullPool, QueuePool

        from token_broker.memory.store.tables import migrate

        if self._writer is not None:
            return False
        self.lock()
        make_private_folder(self.path.parent)
        make_private_file(self.path)

        def prepare(connection: Any, _record: object, *, cache_kib: int) -> None:
            connection.isolation_level = None  # our own BEGIN, below
            for pragma in (
                f"busy_timeout = {self._busy_ms}",
                "journal_mode = WAL",
                "secure_delete = ON",  # what is erased must not stay in the file's free pages
                "synchronous = FULL",  # NORMAL would lose acknowledged turns with the power
                "journal_size_limit = 67108864",
                "temp_store = MEMORY",  # else each commit makes a file, to undo a statement that fails halfway
                f"cache_size = -{cache_kib}",
                f"wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}",
            ):
                connection.execute(f"PRAGMA {pragma}")

        def begin(connection: "Connection", statement: str) -> None:
            # Straight to the driver: SQLAlchemy takes longer to execute a statement than SQLite to begin.
            connection.connection.cursor().execute(statement)

        url = f"sqlite:///{self.path}"
        writer = create_engine(url, poolclass=NullPool)
        readers = {
            name: create_engine(url, poolclass=QueuePool, pool_size=size.at_once, max_overflow=0)
            for name, size in READ_POOLS.items()
        }
        for each in (writer, *readers.values()):
            cache_kib = _WRITER_CACHE_KIB if each is writer else _READER_CACHE_KIB
            event.listen(each, "connect", partial(prepare, cache_kib=cache_kib))
            # IMMEDIATE: a deferred transaction that reads first fails where somebody else writes before it does.
            event.listen(each, "begin", partial(begin, statement="BEGIN IMMEDIATE" if each is writer else "BEGIN"))
        with _MIGRATING, writer.begin() as connection:
            was_empty = migrate(connection)
        self._writer, self._readers, self._checkpointer = writer, readers, Checkpointer(self.path)
        return was_empty

    def _write(self, work: "Callable[[Connection], R]") -> R:
        """Uses the connection of the last transaction, as long as that ended cleanly."""
        if self._writer is None:
            raise StoreUnreachableError("not yet open")
        connection = self._kept or self._writer.connect()
        self._kept = None
        try:
            with connection.begin():
                return work(connection)
        finally:
            # SQLAlchemy and SQLite are both asked: a COMMIT that fails may leave SQLite's transaction open.
            unfinished = connection.invalidated or connection.in_transaction()
            driver: Any = None if unfinished else connection.connection.dbapi_connection
            if driver is None or driver.in_transaction:
                connection.close()
            else:
                self._kept = connection
                if self._checkpointer is not None:
                    self._checkpointer.committed(driver)


class ReaderThreads:
    """The threads of one read pool. Work whose caller has left is skipped, and keeps its place until then."""

    def __init__(self, pool: PoolName) -> None:
        self._pool = pool
        self._inside = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(READ_POOLS[pool].at_once, f"memory-{pool}")

    async def run(self, work: Callable[..., R], *arguments: Any) -> R:
        """Runs `work` in a thread. Raises StoreBusyError where the pool is full, and what `work` raises."""
        given_up = threading.Event()

        def leave() -> None:
            with self._lock:
                self._inside -= 1

        def run() -> Any:
            try:
                return None if given_up.is_set() else work(*arguments)
            finally:
                leave()

        with self._lock:
            if self._inside >= READ_POOLS[self._pool].total:
                raise pool_is_full(self._pool)
            self._inside += 1
        try:
            done = asyncio.wrap_future(self._threads.submit(run))
        except BaseException:
            leave()
            raise
        try:
            # Shielded: a cancelled item would stay in the executor's queue, which has no bound.
            found: R = await asyncio.shield(done)
        except asyncio.CancelledError:
            given_up.set()
            raise
        return found

    def shut_down(self, *, wait: bool) -> None:
        """Accepts no more work, and drops what waits."""
        self._threads.shutdown(wait=wait, cancel_futures=True)


class Checkpointer:
    """A thread that copies the write-ahead log into the database file, within a second or two of a commit.

    SQLite would do that within the commit that finds the log long, and that commit's callers would wait. Here it runs
    beside the commits. A log that grows all the while never starts over, though: where it is long, the writer copies
    the small rest that the thread has left.
    """

    def __init__(self, path: Path) -> None:
        self._uri = path.absolute().as_uri() + "?mode=rw"
        self._committed = threading.Event()
        self._stopping = threading.Event()
        self._wants_tail = False
        self._thread = threading.Thread(target=self._run, name="memory-checkpoints", daemon=True)
        self._thread.start()

    def committed(self, connection: sqlite3.Connection) -> None:
        """The writer calls this after each commit, outside a transaction."""
        self._committed.set()
        if self._wants_tail:
            self._wants_tail = False
            with contextlib.suppress(sqlite3.Error):
                connection.execute(_PASSIVE).close()

    def stop(self) -> None:
        """Ends the thread; waits for a checkpoint under way, but not for long."""
        self._stopping.set()
        self._committed.set()
        self._thread.join(_CHECKPOINTER_STOP_S)

    def _run(self) -> None:
        while not self._stopping.wait(_CHECKPOINT_EVERY_S):
            self._committed.wait()
            self._committed.clear()
            with contextlib.suppress(sqlite3.Error):  # a full disk, a file that is gone: commits report it
                self._checkpoint()

    def _checkpoint(self) -> None:
        with contextlib.closing(sqlite3.connect(self._uri, uri=True)) as connection:
            for _ in range(_CHECKPOINT_TRIES):
                if self._stopping.is_set():
                    return
                _busy, pages, copied = connection.execute(_PASSIVE).fetchone()
                if pages < _LONG_LOG_PAGES:
                    return
                if pages - copied <= _TAIL_PAGES:
                    break
            self._wants_tail = True


def make_private_folder(path: Path) -> None:
    """Makes the folder, and its missing parents, with mode 0700; an existing folder stays as it is. Raises OSError."""
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)


def make_private_file(database: Path) -> None:
    """Makes the database, empty, where it is missing: SQLite gives the files beside it the same mode. Raises OSError.

    The modes of files that others may read are corrected. A log line tells of each, also where that is not permitted.
    """
    # Only a new file is opened: closing a file that SQLite has open would release its POSIX locks on it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for path in (database.with_name(database.name + suffix) for suffix in _SUFFIXES):
        try:
            mode = path.stat().st_mode & 0o777
        except OSError:
            continue
        if not mode & _OTHERS:
            continue
        try:
            path.chmod(mode & ~_OTHERS)
        except OSError as error:
            log.warning("store_file_open_to_others", file=path.name, mode=f"{mode:04o}", reason=error.strerror)
        else:
            log.warning("store_file_made_private", file=path.name, mode=f"{mode:04o}")


class FileLock:
    """An advisory lock (flock) on `<database>.lock`, held while the process lives; `kill -9` releases it."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")
        self._file: int | None = None

    def take(self) -> None:
        """Raises StoreInUseError where another process holds it, OSError where the file cannot be made."""
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

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def free_bytes_of(folder: Path) -> int:
    """The bytes that an unprivileged user may still write to a folder's file system. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def reusable_bytes(connection: "Connection") -> int:
    """The bytes erased within an SQLite file: the file keeps its size and uses them again."""
    pages, page_bytes = (
        connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0 for name in ("freelist_count", "page_size")
    )
    return int(pages) * int(page_bytes)


class DiskSpace:
    """Whether the disk has room for new turns. A reserve is kept free, because erasing writes to the disk too.

    Looks at the disk once a second at most, or after 16 MiB; that takes microseconds. Space that the database file can
    use again counts as free, as long as a quarter of the reserve is free beside it, for the log. A `reserve_bytes` of 0
    is off. A disk that cannot be looked at is not short: where it is away, the store reports that.
    """

    def __init__(
        self,
        folder: Path,
        reserve_bytes: int,
        *,
        free_bytes: Callable[[Path], int] = free_bytes_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._measure = free_bytes
        self._clock = clock
        self._checked_at_s = float("-inf")
        self._bytes_since = 0
        self._is_short = False
        self.free_bytes: int | None = None  # at the last check
        self.reusable_bytes = 0  # within the database file; set by whoever asks the database

    def is_short(self, wanted_bytes: int = 0) -> bool:
        """Whether less than the reserve is free; `wanted_bytes` are about to be written."""
        self._bytes_since += wanted_bytes
        now_s = self._clock()
        if now_s < self._checked_at_s + _CHECK_EVERY_S and self._bytes_since < _CHECK_EVERY_BYTES:
            return self._is_short
        self._checked_at_s, self._bytes_since = now_s, 0
        self.free_bytes = None
        with contextlib.suppress(OSError):
            self.free_bytes = self._measure(self._folder)
        free, reserve = self.free_bytes, self._reserve_bytes
        is_short = free is not None and not (
            free >= reserve or (free >= reserve // 4 and free + self.reusable_bytes >= reserve)
        )
        if is_short and not self._is_short:
            log.error("disk_nearly_full", free_bytes=free, floor_bytes=reserve)
        elif self._is_short and not is_short:
            log.info("disk_has_room_again", free_bytes=free)
        self._is_short = is_short
        return is_short
