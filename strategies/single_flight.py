"""One task a key at a time, shared by all who need its result."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

__all__ = ["SingleFlight"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_CLOSE_TIMEOUT_S = 1.0


class SingleFlight(Generic[K, V]):
    """Starts no second task for a key while the first one runs. `name` is that of the tasks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: dict[K, asyncio.Task[V]] = {}

    def __contains__(self, key: K) -> bool:
        """Whether a task runs for `key`."""
        # Not membership alone: a task is done one step of the event loop before its callback runs.
        return (task := self._running.get(key)) is not None and not task.done()

    def start(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> "asyncio.Task[V]":
        """The task that runs for `key`, or a new one that runs `work()`.

        Wait for it with `asyncio.wait` or `asyncio.shield`: awaited directly, one cancelled caller cancels it for all.
        """
        if key in self:
            return self._running[key]
        task = self._running[key] = asyncio.create_task(work(), name=self._name)
        task.add_done_callback(partial(self._remove, key))
        return task

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """The result of `start`. A cancelled caller leaves the task running for the others. Raises what `work` does."""
        return await asyncio.shield(self.start(key, work))

    async def aclose(self) -> None:
        """Cancels the tasks that still run."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT_S)

    def _remove(self, key: K, task: "asyncio.Task[V]") -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # marks it as retrieved: all callers may have left, and asyncio would log it
