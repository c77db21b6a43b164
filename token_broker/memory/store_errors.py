"""The errors of the store, as the rest of the memory sees them.

StoreError
├── StoreAwayError          the store cannot commit now: down, full, locked, not yet open; try again
│   ├── StoreFullError          its disk is full, or nearly; nothing new is stored until there is room
│   └── StoreUnreachableError   it does not answer: others need not try until it was reached again
├── StoreBusyError          it works, but its queue is full; try again
├── StoreRefusedError       it will never take this row (apart from the others, so that only this row is refused)
├── BlocklistFullError      the blocklist holds no more entries
└── StoreInUseError         another process has the SQLite file; the broker cannot start on it

NotOwnerError is no fault of the store: it did its work, and the session is not the caller's.
"""

__all__ = [
    "BlocklistFullError",
    "NotOwnerError",
    "StoreAwayError",
    "StoreBusyError",
    "StoreError",
    "StoreFullError",
    "StoreInUseError",
    "StoreRefusedError",
    "StoreRolledBackError",
    "StoreUnreachableError",
]


class StoreError(Exception):
    """Any error of the store."""


class StoreAwayError(StoreError):
    """The store cannot commit now; whether the last attempt was stored may be unknown."""


class StoreFullError(StoreAwayError):
    """The store's disk has no room, or less than its reserve; reading and erasing may still work."""


class StoreUnreachableError(StoreAwayError):
    """The store does not answer at all; `lost` tells that a connection ended under the work."""

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


class StoreRolledBackError(StoreAwayError):
    """The database undid a transaction, so that others could go on: nothing of it was written."""


class StoreBusyError(StoreError):
    """The queue before the store is full."""


class StoreRefusedError(StoreError):
    """The store will not take this row, now or later."""


class BlocklistFullError(StoreError):
    """The blocklist holds no more entries."""


class StoreInUseError(StoreError):
    """The SQLite database belongs to another process."""


class NotOwnerError(Exception):
    """The session is another principal's, or was erased (`erased`): it can neither be read nor erased."""

    def __init__(self, *, erased: bool) -> None:
        super().__init__("the session was erased" if erased else "the session is another principal's")
        self.erased = erased
