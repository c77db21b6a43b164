"""What can go wrong between the broker and its store, as the rest of the memory sees it.

StoreError
├── StoreAwayError         the store cannot commit now: down, full, locked, not yet open; come again
│   ├── StoreFullError         its disk is full, or nearly; nothing new is stored until somebody makes room
│   └── StoreUnreachableError   nobody answers: others need not try until it has been reached again
├── StoreBusyError         it works, but its queue is full; come again
├── StoreRefusedError      this row will never be taken (kept apart, so that it holds up no other)
├── BlocklistFullError    nobody more can be blocked until somebody is let in again
└── StoreInUseError        another process has the SQLite file; the broker cannot start on it

NotOwnerError is no fault of the store's: it did its work, and the session is not the caller's.
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
    "StoreUnreachableError",
]


class StoreError(Exception):
    """Anything of the store's."""


class StoreAwayError(StoreError):
    """The store cannot commit now; whether the last attempt was stored may be unknown."""


class StoreFullError(StoreAwayError):
    """The store's disk has no room, or less than it is to keep; reading and erasing may still work."""


class StoreUnreachableError(StoreAwayError):
    """The store does not answer at all; `lost` tells that a connection ended under the work."""

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


class StoreBusyError(StoreError):
    """The queue before the store is full."""


class StoreRefusedError(StoreError):
    """The store will not take this row, now or later."""


class BlocklistFullError(StoreError):
    """As many are blocked as the list holds."""


class StoreInUseError(StoreError):
    """The SQLite database belongs to another process."""


class NotOwnerError(Exception):
    """The session is another principal's, or was erased (`erased`): it can neither be read nor erased."""

    def __init__(self, *, erased: bool) -> None:
        super().__init__("the session was erased" if erased else "the session is another principal's")
        self.erased = erased
