"""Whether the disk has room for new turns: SQLite's file system keeps a reserve, so that erasing stays possible."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["DiskWatch", "free_bytes_of", "reusable_bytes"]

log = structlog.get_logger(__name__)

_EVERY_S = 1.0
_EVERY_BYTES = 16 * 1024 * 1024  # handed to the store: so much may have been written since


def free_bytes_of(folder: Path) -> int:
    """What a user without privileges may still write to a folder's file system. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def reusable_bytes(connection: "Connection") -> int:
    """What was erased from an SQLite file, which keeps the space and uses it again."""
    pages, page_bytes = (
        connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0 for name in ("freelist_count", "page_size")
    )
    return int(pages) * int(page_bytes)


class DiskWatch:
    """Looks at the free space once a second at most, or after so many bytes; that takes microseconds.

    Space that the database file can use again counts as free, as long as a quarter of the floor is free beside it, for
    the log. `floor_bytes` of 0 is off. A disk that can't be looked at is not short: if it is away, the store says so.
    """

    def __init__(
        self,
        folder: Path,
        floor_bytes: int,
        *,
        free_bytes: Callable[[Path], int] = free_bytes_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._floor_bytes = floor_bytes
        self._measure = free_bytes
        self._clock = clock
        self._looked_at_s = float("-inf")
        self._bytes_since = 0
        self._is_short = False
        self.free_bytes: int | None = None  # when it was last looked at
        self.reusable_bytes = 0  # within the database file; whoever asks the database says so

    def is_short(self, wanted_bytes: int = 0) -> bool:
        """Whether less is free than is to be kept; `wanted_bytes` are about to be written."""
        self._bytes_since += wanted_bytes
        now_s = self._clock()
        if now_s >= self._looked_at_s + _EVERY_S or self._bytes_since >= _EVERY_BYTES:
            self._looked_at_s, self._bytes_since = now_s, 0
            self._look()
        return self._is_short

    def _look(self) -> None:
        self.free_bytes = None
        with contextlib.suppress(OSError):
            self.free_bytes = self._measure(self._folder)
        is_short = self.free_bytes is not None and not self._is_enough(self.free_bytes)
        if is_short and not self._is_short:
            log.error("disk_nearly_full", free_bytes=self.free_bytes, floor_bytes=self._floor_bytes)
        elif self._is_short and not is_short:
            log.info("disk_has_room_again", free_bytes=self.free_bytes)
        self._is_short = is_short

    def _is_enough(self, free_bytes: int) -> bool:
        if free_bytes >= self._floor_bytes:
            return True
        return free_bytes >= self._floor_bytes // 4 and free_bytes + self.reusable_bytes >= self._floor_bytes
