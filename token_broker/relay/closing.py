"""How a talk ends, as the client is told: contract §3's close codes and reasons that are safe to show."""

from dataclasses import dataclass

__all__ = [
    "BAD_REQUEST",
    "CLIENT_STALLED",
    "DONE",
    "DRAINING",
    "FOREIGN_ORIGIN",
    "INTERNAL",
    "TICKET_REFUSED",
    "TOO_LARGE",
    "TOO_MANY",
    "UPSTREAM_FAILED",
    "UPSTREAM_TIMED_OUT",
    "Ending",
]

DONE = 1000
TOO_LARGE = 1009
INTERNAL = 1011
BAD_REQUEST = 4400
TICKET_REFUSED = 4401
FOREIGN_ORIGIN = 4403
UPSTREAM_TIMED_OUT = 4408
CLIENT_STALLED = 4410
TOO_MANY = 4429
UPSTREAM_FAILED = 4502
DRAINING = 4503


@dataclass(frozen=True, slots=True)
class Ending:
    """A close code and its reason: at most 123 bytes, none of them Azure's."""

    code: int
    reason: str
