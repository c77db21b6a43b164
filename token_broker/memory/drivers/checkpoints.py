"""SQLite's checkpoints, away from its commits: what the write-ahead log holds is brought into the database file.

SQLite would do that within whichever commit finds the log long, and that commit's callers would wait for it. Here a
thread does it while commits go on. A log that is added to all the while has no end, though, at which it could begin
anew: so where it is long, the writer brings over the little that the thread has left.
"""

import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

__all__ = ["SAFETY_PAGES", "Checkpointer"]

_EVERY_S = 1.0
_LONG_PAGES = 4_096
_TAIL_PAGES = 400  # what a commit's callers may be made to wait for
_TRIES = 4
_STOP_S = 4.0

# A commit that finds the log so long checkpoints after all: the thread fails, or can't keep up.
SAFETY_PAGES = 4 * _LONG_PAGES

_PASSIVE = "PRAGMA wal_checkpoint(PASSIVE)"  # waits for nobody, and nobody for it


class Checkpointer:
    """Checkpoints within a second or two of a commit, from when it is made until it is stopped."""

    def __init__(self, path: Path) -> None:
        self._uri = path.absolute().as_uri() + "?mode=rw"
        self._committed = threading.Event()
        self._stopping = threading.Event()
        self._wants_tail = False
        self._thread = threading.Thread(target=self._run, name="memory-checkpoints", daemon=True)
        self._thread.start()

    def committed(self, connection: sqlite3.Connection) -> None:
        """To be told by the writer, outside a transaction."""
        self._committed.set()
        if self._wants_tail:
            self._wants_tail = False
            with contextlib.suppress(sqlite3.Error):
                connection.execute(_PASSIVE).close()

    def stop(self) -> None:
        """Ends the thread; a checkpoint under way is waited for, but not for long."""
        self._stopping.set()
        self._committed.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            self._committed.wait()
            self._committed.clear()
            with contextlib.suppress(sqlite3.Error):  # a full disk, a file that is gone: commits tell of it
                self._bring_over()

    def _bring_over(self) -> None:
        with contextlib.closing(sqlite3.connect(self._uri, uri=True)) as connection:
            for _ in range(_TRIES):
                if self._stopping.is_set():
                    return
                pages, left = _progress(connection.execute(_PASSIVE).fetchone())
                if pages < _LONG_PAGES:
                    return
                if left <= _TAIL_PAGES:
                    break
            self._wants_tail = True


def _progress(row: Any) -> tuple[int, int]:
    """Pages in the log, and those of them that are still to be brought over."""
    _busy, pages, done = row
    return pages, pages - done
