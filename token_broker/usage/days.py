"""UTC days by the database's clock, and seconds by a monotonic one."""

import time
from collections.abc import Callable, Iterator

__all__ = ["DAY_US", "StoreClock", "split_by_day"]

DAY_US = 86_400_000_000


class StoreClock:
    """The database's time between two looks at it. Before the first, this machine's.

    `note` gets the database's microseconds since 1970, read just now.
    """

    def __init__(
        self, *, wall_s: Callable[[], float] = time.time, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.monotonic_s = monotonic_s
        self._ahead_us = round(wall_s() * 1_000_000) - round(monotonic_s() * 1_000_000)

    def note(self, now_us: int) -> None:
        self._ahead_us = now_us - round(self.monotonic_s() * 1_000_000)

    def now_us(self) -> int:
        """Microseconds since 1970."""
        return self._ahead_us + round(self.monotonic_s() * 1_000_000)

    def day(self) -> int:
        """The UTC day, counted from 1970."""
        return self.now_us() // DAY_US


def split_by_day(until_us: int, elapsed_us: int) -> Iterator[tuple[int, int]]:
    """The days within the time that ends at `until_us`, each with its part of it in microseconds."""
    at_us = until_us - elapsed_us
    while at_us < until_us:
        day = at_us // DAY_US
        end_us = min(until_us, (day + 1) * DAY_US)
        yield day, end_us - at_us
        at_us = end_us
