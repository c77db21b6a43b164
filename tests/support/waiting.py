"""Waits for a state that another process or a timer brings about without an event."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["eventually"]

T = TypeVar("T")


async def eventually(check: Callable[[], Awaitable[T]], *, within_s: float = 20, every_s: float = 0.02) -> T:
    """The first true answer of `check`. Raises TimeoutError if there is none in time."""
    async with asyncio.timeout(within_s):
        while not (answer := await check()):  # noqa: ASYNC110  # see above
            await asyncio.sleep(every_s)
    return answer
