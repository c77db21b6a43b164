"""SQLite's files: private to the broker's user, locked by one process, on a disk that keeps a reserve."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from token_broker.memory.store_errors import StoreInUseError

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["DiskSpace", "FileLock", "free_bytes_of", "make_private_file", "make_private_folder", "reusable_bytes"]

log = structlog.get_logger(__name__)

_OTHERS = 0o077
_SUFFIXES = ("", "-wal", "-shm", "-journal", ".lock", ".signing-key")
_CHECK_EVERY_S = 1.0
_CHECK_EVERY_BYTES = 16 * 1024 * 1024  # given to the store: a fast writer fills a small disk within a second


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
