"""The database as the memory uses it: run a function on a connection in one transaction, and learn what went wrong.

The functions (in `memory/store/`) are plain SQLAlchemy Core on a plain `Connection`. SQLite runs them in
threads of its own, PostgreSQL on the event loop over asyncpg: the statements are the same, and neither blocks a talk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from token_broker.memory.store_errors import (
    StoreAwayError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    StoreRolledBackError,
    StoreUnreachableError,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["READ_POOLS", "Database", "DialectName", "PoolName", "PoolSize", "pool_is_full", "store_error"]

R = TypeVar("R")
DialectName = Literal["sqlite", "postgresql"]

# Each kind of read has threads (SQLite) or connections (PostgreSQL) of its own, and a bound on how many wait. Without
# that, sixty recalls at once would delay every ticket and every ownership check behind them.
PoolName = Literal["quick", "bulk", "recall"]


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How many reads a pool runs at once, and how many it holds, those that wait included."""

    at_once: int
    total: int


READ_POOLS: dict[PoolName, PoolSize] = {
    "quick": PoolSize(2, 1000),  # owners, tickets, the blocklist, the status
    "bulk": PoolSize(2, 32),  # pages of turns
    "recall": PoolSize(2, 64),  # turns and facts for an agent
}

_UNREACHABLE_SQLSTATES = ("08", "57P")  # connection; shutting down, starting up
_DISK_FULL_SQLSTATE = "53100"
_ROLLED_BACK_SQLSTATES = ("40",)  # a deadlock, and others for whose sake the transaction was undone
# Classes that may be a row's own fault: its data, a constraint, a limit, a trigger. Every other class is the server's
# fault, from a full disk to a missing right: an operator repairs it, and the same row is stored then.
_ROW_SQLSTATES = ("21", "22", "23", "44", "54", "P0")


class Database(Protocol):
    """A store that may be away and come back."""

    dialect: DialectName

    async def open(self) -> bool:
        """Connects and migrates; True where there were no tables. Raises StoreError, and may then be called again."""
        ...

    async def write(
        self, work: "Callable[[Connection], R]", *, idempotent: bool = True, one_statement: bool = False
    ) -> R:
        """Runs `work` in a transaction; returns once it is committed and flushed to disk. Raises StoreError.

        `idempotent` work is done once more where its outcome was lost with the connection, and any work where the
        database undid it to end a deadlock. Work of `one_statement` needs no transaction round it: PostgreSQL is asked
        once then, instead of three times.
        """
        ...

    async def read(self, work: "Callable[[Connection], R]", *, pool: PoolName = "quick") -> R:
        """Runs `work` on a snapshot, in a pool that no other delays. Raises StoreError; StoreBusyError if full."""
        ...

    async def close(self) -> None:
        """Closes what was opened; waits for work under way, but not for long."""
        ...


def pool_is_full(pool: PoolName) -> StoreBusyError:
    """The error for a read that finds no room in its pool."""
    return StoreBusyError(f"too many reads wait ({pool})")


def store_error(error: Exception) -> Exception:
    """Maps a driver's error to a StoreError. Never carries the driver's text, which may quote what was said.

    An error that is not the database's is a fault of ours, and is returned unchanged.
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
        if sqlstate == _DISK_FULL_SQLSTATE:
            return StoreFullError(sqlstate)
        if sqlstate.startswith(_UNREACHABLE_SQLSTATES):
            return StoreUnreachableError(sqlstate)
        if sqlstate.startswith(_ROLLED_BACK_SQLSTATES):
            return StoreRolledBackError(sqlstate)
        return StoreRefusedError(sqlstate) if sqlstate.startswith(_ROW_SQLSTATES) else StoreAwayError(sqlstate)
    # By name: the classes are SQLAlchemy's and asyncpg's, and neither may be loaded here.
    about_data = type(error).__name__ in {"DataError", "IntegrityError", "ProgrammingError", "StatementError"}
    return StoreRefusedError(type(error).__name__) if about_data else StoreAwayError(type(error).__name__)
