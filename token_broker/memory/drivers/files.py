"""The store's files are the broker's alone: mode 0600 from the first moment, in a folder of 0700."""

import contextlib
import os
from pathlib import Path

import structlog

__all__ = ["make_private_file", "make_private_folder"]

log = structlog.get_logger(__name__)

_OTHERS = 0o077
_BESIDE = ("", "-wal", "-shm", "-journal", ".lock", ".signing-key")


def make_private_folder(path: Path) -> None:
    """Makes the folder, and those above it, where they are missing; what is there stays as it is. Raises OSError."""
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)


def make_private_file(database: Path) -> None:
    """Makes the database, empty, where it is missing: what SQLite makes beside it gets its mode. Raises OSError.

    Files that others may read are corrected, with a log line; where that is not allowed, the line says so.
    """
    # Only a file that is new is opened: to close one that SQLite has open would free the locks that it holds there.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for suffix in _BESIDE:
        _correct(database.with_name(database.name + suffix))


def _correct(path: Path) -> None:
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        return
    if not mode & _OTHERS:
        return
    try:
        path.chmod(mode & ~_OTHERS)
    except OSError as error:
        log.warning("store_file_open_to_others", file=path.name, mode=f"{mode:04o}", reason=error.strerror)
    else:
        log.warning("store_file_made_private", file=path.name, mode=f"{mode:04o}")
