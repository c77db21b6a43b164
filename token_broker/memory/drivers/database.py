"""The database as the memory uses it: run a function on a connection, in one transaction, and hear what went wrong.

The functions (in `memory/store/`) are plain SQLAlchemy Core on a plain `Connection`. SQLite runs them in
threads of its own, PostgreSQL on the event loop over asyncpg: the statements are the same, and neither blocks a talk.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from token_broker.memory.drivers.lanes import Lane
from token_broker.memory.errors import (
    StoreAwayError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    StoreUnreachableError,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["Database", "DialectName", "store_error"]

R = TypeVar("R")
DialectName = Literal["sqlite", "postgresql"]

_UNREACHABLE_SQLSTATES = ("08", "57P")  # connection; shutting down, starting up
_DISK_FULL_SQLSTATE = "53100"
# What may be a row's own fault: its data, a constraint, a limit, somebody's trigger. All else is the server's, from a
# full disk or a damaged table to a right that is missing; somebody has to mend it, and then it goes on.
_ROWS_SQLSTATES = ("21", "22", "23", "44", "54", "P0")


class Database(Protocol):
    """A store that may be away and come back."""

    dialect: DialectName

    async def open(self) -> bool:
        """Connects and migrates; whether there were no tables. Raises StoreError, and may then be called again."""
        ...

    async def write(self, work: "Callable[[Connection], R]", *, again: bool = True) -> R:
        """Runs `work` in a transaction; returns once it is committed and flushed to disk. Raises StoreError.

        `again` says that work whose outcome was lost with the connection may be done once more.
        """
        ...

    async def read(self, work: "Callable[[Connection], R]", *, lane: Lane = "quick") -> R:
        """Runs `work` on a snapshot, in a lane that no other delays. Raises StoreError; busy where the lane is full."""
        ...

    async def close(self) -> None:
        """Ends what was opened; waits for work under way, but not for long."""
        ...


def store_error(error: Exception) -> Exception:
    """What a driver's error means for the caller; never carries its text, which may hold what was said.

    An error that is not the database's is a fault of ours, and comes back as it is.
    """
    if isinstance(error, StoreError):
        return error
    if isinstance(error, TimeoutError | OSError):
        return StoreUnreachableError(type(error).__name__)
    if not type(error).__module__.startswith(("sqlalchemy", "asyncpg", "sqlite3")):
        return error
    original = getattr(error, "orig", None) or error
    if getattr(error, "connection_invalidated", False):
        return StoreUnreachableError("connection lost", lost=True)
    if isinstance(original, TimeoutError | OSError):
        return StoreUnreachableError(type(original).__name__)
    if (name := getattr(original, "sqlite_errorname", None)) is not None:
        if name == "SQLITE_FULL":
            return StoreFullError(name)
        refused = name.startswith(("SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_TOOBIG"))
        return StoreRefusedError(name) if refused else StoreAwayError(name)
    if (sqlstate := getattr(original, "sqlstate", None)) is not None:
        return _postgresql_error(sqlstate)
    return StoreRefusedError(type(error).__name__) if _is_about_data(error) else StoreAwayError(type(error).__name__)


def _postgresql_error(sqlstate: str) -> StoreError:
    if sqlstate == _DISK_FULL_SQLSTATE:
        return StoreFullError(sqlstate)
    if sqlstate.startswith(_UNREACHABLE_SQLSTATES):
        return StoreUnreachableError(sqlstate)
    return StoreRefusedError(sqlstate) if sqlstate.startswith(_ROWS_SQLSTATES) else StoreAwayError(sqlstate)


def _is_about_data(error: Exception) -> bool:
    return type(error).__name__ in {"DataError", "IntegrityError", "ProgrammingError", "StatementError"}
