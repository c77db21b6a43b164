"""Asks each configured hook whether it is there and takes the signature: a `{"type": "ping"}`, which does nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from token_broker.hooks.sender import HookAnswer, HookSender
from token_broker.tools.configured_hooks import ConfiguredHook
from token_broker.web.requests import uuid7

__all__ = ["ping_hooks"]

_AT_ONCE = 8
_MAX_ANSWER_BYTES = 65_536


async def ping_hooks(
    hooks: Sequence[ConfiguredHook], sender: HookSender, *, timeout_s: float
) -> AsyncIterator[tuple[ConfiguredHook, HookAnswer, float]]:
    """Each hook with its answer and how many milliseconds that took, as it comes."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def ping(hook: ConfiguredHook) -> tuple[ConfiguredHook, HookAnswer, float]:
        async with places:
            began_s = time.monotonic()
            answer = await sender.post(
                hook.url,
                {"type": "ping"},
                webhook_id=f"ping_{uuid7()}",
                timeout_s=timeout_s,
                max_bytes=_MAX_ANSWER_BYTES,
                headers=hook.headers,
            )
            return hook, answer, (time.monotonic() - began_s) * 1000

    pings = [asyncio.create_task(ping(hook)) for hook in hooks]
    try:
        for done in asyncio.as_completed(pings):
            yield await done
    finally:
        for task in pings:
            task.cancel()
