"""Timed assertions on a shared machine: a test that was late because nothing ran here is repeated."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

import pytest

__all__ = ["StolenTime", "retry_if_host_busy"]

P = ParamSpec("P")

_BEAT_S = 0.01
_STALLED_S = 0.08
_STOLEN_SHARE = 0.03
_TOO_BUSY_S = 0.4  # of standing still: a page has a tenth of a second of sound in hand
_TOO_BUSY_SHARE = 0.15
_STEAL = 7  # the column of `cpu` in /proc/stat


def _now() -> tuple[int, int]:
    """Ticks that the hypervisor took, and all ticks."""
    try:
        columns = [int(column) for column in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    except OSError:
        return 0, 0
    return columns[_STEAL], sum(columns[: _STEAL + 1])


@dataclass(slots=True)
class StolenTime:
    """The share of CPU that the hypervisor took since this object was made; 0 where /proc/stat does not tell."""

    _began: tuple[int, int] = field(default_factory=_now)

    @property
    def share(self) -> float:
        stolen, all_of_it = (now - before for now, before in zip(_now(), self._began, strict=True))
        return stolen / all_of_it if all_of_it else 0.0

    def tell(self) -> None:
        print(f"The host took {self.share:.0%} of this machine's CPU for others meanwhile.\n")  # noqa: T201  # benchmarks print it


@dataclass(slots=True)
class _Stalls:
    worst_s: float = 0.0


def retry_if_host_busy(
    tries: int = 6, *, or_skipped: bool = False
) -> Callable[[Callable[P, Awaitable[None]]], Callable[P, Coroutine[Any, Any, None]]]:
    """Repeats a failed test if the event loop stood still meanwhile, or the hypervisor took CPU away.

    The last try counts. With `or_skipped` the test is skipped instead, where every try was disturbed so much that no
    sound comes through; less does not excuse it, or a test that always fails would be skipped on each busy machine.
    """

    def judged(test: Callable[P, Awaitable[None]]) -> Callable[P, Coroutine[Any, Any, None]]:
        @functools.wraps(test)
        async def judge(*args: P.args, **kwargs: P.kwargs) -> None:
            too_busy = or_skipped
            for left in reversed(range(tries)):
                stolen = StolenTime()
                async with _watched() as stalls:
                    try:
                        await test(*args, **kwargs)
                    except (AssertionError, ExceptionGroup, TimeoutError):
                        undisturbed = stalls.worst_s < _STALLED_S and stolen.share < _STOLEN_SHARE
                        too_busy &= stalls.worst_s >= _TOO_BUSY_S or stolen.share >= _TOO_BUSY_SHARE
                        if undisturbed or (left == 0 and not too_busy):
                            raise
                    else:
                        return
            seen = f"stood still for {stalls.worst_s:.2f} s, {stolen.share:.0%} of its CPU taken by its host"
            pytest.skip(f"this machine is too busy to judge time: {seen}")

        return judge

    return judged


@contextlib.asynccontextmanager
async def _watched() -> AsyncIterator[_Stalls]:
    stalls = _Stalls()

    async def beat() -> None:
        while True:
            due_s = time.monotonic() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            stalls.worst_s = max(stalls.worst_s, time.monotonic() - due_s)

    beating = asyncio.create_task(beat())
    try:
        yield stalls
    finally:
        beating.cancel()
