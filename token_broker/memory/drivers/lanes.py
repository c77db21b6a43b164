"""Lanes for reading: what is asked for in one of them waits for nothing in another.

`quick` answers who owns a session, who is blocked, how the store does; `bulk` reads pages of turns; `recall` looks for
what an agent is told. Each has threads (SQLite) or connections (PostgreSQL) of its own, and a bound on how many wait.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from token_broker.memory.errors import StoreBusyError

__all__ = ["LANES", "Lane", "LaneQueue", "LaneThreads"]

R = TypeVar("R")
Lane = Literal["quick", "bulk", "recall"]


@dataclass(frozen=True, slots=True)
class _Size:
    at_once: int
    most: int  # at once and waiting


LANES: dict[Lane, _Size] = {"quick": _Size(2, 1000), "bulk": _Size(2, 32), "recall": _Size(2, 64)}


class LaneQueue:
    """Counts who is in a lane; threads and the event loop may both use it."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._most = LANES[lane].most
        self._inside = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Raises StoreBusyError where the lane is full; else `leave` has to follow."""
        with self._lock:
            if self._inside >= self._most:
                raise StoreBusyError(f"too many reads wait ({self._lane})")
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """`enter` and `leave`."""
        self.enter()
        try:
            yield
        finally:
            self.leave()


class LaneThreads:
    """A lane's threads. Who leaves while their work waits has it passed over, and keeps its place until then."""

    def __init__(self, lane: Lane) -> None:
        self._queue = LaneQueue(lane)
        self._threads = ThreadPoolExecutor(LANES[lane].at_once, f"memory-{lane}")

    async def run(self, work: Callable[..., R], *arguments: Any) -> R:
        """Runs `work` in a thread. Raises StoreBusyError where the lane is full, and what `work` raises."""
        given_up = threading.Event()

        def run() -> Any:
            try:
                return None if given_up.is_set() else work(*arguments)
            finally:
                self._queue.leave()

        self._queue.enter()
        try:
            # Shielded: a cancelled item would stay in the executor's queue, which nobody bounds.
            done = asyncio.wrap_future(self._threads.submit(run))
        except BaseException:
            self._queue.leave()
            raise
        try:
            found: R = await asyncio.shield(done)
        except asyncio.CancelledError:
            given_up.set()
            raise
        return found

    def shut_down(self, *, wait: bool) -> None:
        """No more work is taken, and what waits is dropped."""
        self._threads.shutdown(wait=wait, cancel_futures=True)
