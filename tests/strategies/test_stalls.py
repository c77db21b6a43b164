"""A stall of our own loop is told."""

import asyncio
import contextlib
import time

from strategies.stalls import report_stalls


async def test_stall_is_reported() -> None:
    told: asyncio.Queue[float] = asyncio.Queue()
    watching = asyncio.create_task(report_stalls(told.put_nowait))
    await asyncio.sleep(0)  # it waits for its first beat
    time.sleep(0.4)  # noqa: ASYNC251  # the stall
    async with asyncio.timeout(20):
        assert await told.get() >= 0.25
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
