"""Waiting for what another process, or a timer, brings about and no event tells of."""

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["eventually"]


async def eventually(holds: Callable[[], Awaitable[bool]], *, within_s: float = 5, every_s: float = 0.02) -> None:
    """Returns once `holds()` is true; raises TimeoutError where it does not come to that in time."""
    async with asyncio.timeout(within_s):
        while not await holds():  # noqa: ASYNC110  # see above
            await asyncio.sleep(every_s)
