"""How rows are placed and ordered: buckets, arrivals, and the place of a turn that says no sequence."""

import secrets
import time
import zlib
from collections.abc import Callable

__all__ = [
    "BUCKETS",
    "LAST_PLACE",
    "ArrivalClock",
    "arrival_at",
    "arrived_us",
    "bucket_of",
    "place_of",
    "sequence_at",
    "to_us",
]

BUCKETS = 64
LAST_PLACE = 2**31 - 1  # where turns without a sequence stand: behind their epoch's others, in order of arrival
_NODE_BITS = 10


def bucket_of(key: str) -> int:
    """The bucket (0 to 63) of all rows of a session, or of a ticket. Kept in tables: never change it."""
    return zlib.crc32(key.encode()) % BUCKETS


def place_of(sequence: int | None) -> int:
    """A sequence as it is stored, so that databases sort alike."""
    return LAST_PLACE if sequence is None else sequence


def sequence_at(place: int) -> int | None:
    """The sequence that is stored as `place`."""
    return None if place == LAST_PLACE else place


def to_us(seconds: float) -> int:
    """Seconds since 1970 as whole microseconds."""
    return round(seconds * 1_000_000)


def arrival_at(seconds: float) -> int:
    """The least arrival of that time."""
    return to_us(seconds) << _NODE_BITS


def arrived_us(arrival: int) -> int:
    """When an arrival was, in microseconds since 1970."""
    return arrival >> _NODE_BITS


class ArrivalClock:
    """Numbers turns as they arrive: microseconds since 1970, then ten random bits of this process.

    Grows within a process even when the clock goes back; between replicas it is as good as their clocks. It also
    names the attempt to write a row: who finds his own arrival in the table knows that the row is his.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._node = secrets.randbits(_NODE_BITS)
        self._last_us = 0

    def next(self) -> int:
        self._last_us = max(self._last_us + 1, to_us(self._clock()))
        return (self._last_us << _NODE_BITS) | self._node

    def not_before(self, arrival: int) -> None:
        """Makes every later number greater than `arrival`."""
        self._last_us = max(self._last_us, arrived_us(arrival))
