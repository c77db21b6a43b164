"""Waiting for what has no event to wait for, such as another process's commit; bounded."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(check: Callable[[], Awaitable[T]], *, timeout_s: float = 20) -> T:
    """The first true answer of `check`."""
    async with asyncio.timeout(timeout_s):
        while not (answer := await check()):  # noqa: ASYNC110  # another process tells nobody
            await asyncio.sleep(0.01)
    return answer
