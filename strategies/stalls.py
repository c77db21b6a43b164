"""Notices that our own event loop stood still, so that what timed out meanwhile is not blamed on Azure."""

import asyncio
import time
from collections.abc import Callable

__all__ = ["report_stalls"]

# Short, so that the report comes before the time-outs that fell due during the same stall.
_BEAT_S = 0.1
# A busy loop is late by some milliseconds; no limit on Azure's answers is as short as this.
_STALLED_S = 0.25


async def report_stalls(stalled: Callable[[float], None], *, clock: Callable[[], float] = time.monotonic) -> None:
    """Calls `stalled` with the seconds of each stall, as `Pool.stalled` takes them. Runs until it is cancelled."""
    while True:
        due_s = clock() + _BEAT_S
        await asyncio.sleep(_BEAT_S)
        if (late_s := clock() - due_s) >= _STALLED_S:
            stalled(late_s)
