"""Shutting down without dropping a talk.

Uvicorn closes its listener first when it is told to stop, and all WebSockets with 1012 at once. So this module drains
before uvicorn stops: readiness ends, new connections are answered with 4503, and running talks get a grace period. The
remaining talks are told to ask for a new plan. Uvicorn stops once the turns of all talks are stored.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Mapping
from types import FrameType
from typing import Any, Protocol

import structlog
import uvicorn

from token_broker.server.close_codes import DRAINING, Ending

__all__ = ["GOING_AWAY", "Drain", "DrainingServer"]

log = structlog.get_logger("token_broker.relay")

GOING_AWAY = Ending(DRAINING, "the broker is going away: ask for a new plan", outcome="drain")
_END_TIMEOUT_S = 5.0


class Endable(Protocol):
    """A talk that can be told to end."""

    def end(self, ending: Ending) -> None:
        """Ends the talk soon, with this close code and reason."""
        ...


class Drain:
    """Whether the process shuts down, and the talks that still run.

    `hand_overs` give talks to other processes, first of all; each has a bound of its own.
    """

    def __init__(self) -> None:
        self.draining = False
        self.talks: set[Endable] = set()
        self.hand_overs: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """From now on new connections are refused."""
        self.draining = True

    def add(self, talk: Endable) -> None:
        """A talk begins."""
        self.talks.add(talk)

    def remove(self, talk: Endable) -> None:
        """A talk has ended, and its turns are stored."""
        self.talks.discard(talk)
        self._changed.set()

    async def finish(self, grace_s: float) -> None:
        """Returns when no talk runs. After `grace_s` the remaining ones are ended, and get 5 s for it."""
        self.begin()
        moving = [asyncio.create_task(hand_over(), name="drain-hand-over") for hand_over in self.hand_overs]
        await self._wait_until_empty(grace_s)
        for failed in await asyncio.gather(*moving, return_exceptions=True):
            if failed is not None:
                log.error("hand_over_failed", error=type(failed).__name__)
        if self.talks:
            log.warning("talks_ended", talks=len(self.talks), why="the grace period BROKER_DRAIN_S is over")
        for talk in list(self.talks):
            talk.end(GOING_AWAY)
        await self._wait_until_empty(_END_TIMEOUT_S)

    async def _wait_until_empty(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                while self.talks:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass


class DrainingServer(uvicorn.Server):
    """Uvicorn's server, which drains before it shuts down. A second signal stops it at once.

    `state` is the state of a lifespan that runs outside of uvicorn; each request gets a copy of it.
    """

    def __init__(
        self, config: uvicorn.Config, drain: Drain, *, grace_s: float, state: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._grace_s = grace_s
        self._state = state or {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self.lifespan.state.update(self._state)
        await super().startup(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Only asks the event loop to drain: a signal handler may run between any two bytecodes.

        The signal is not recorded for uvicorn to raise again at its end: a completed drain exits with 0.
        """
        if self._loop is None or self._drain.draining:
            super().handle_exit(sig, frame)
            return
        self._drain.begin()
        self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        # Kept in an attribute: the event loop itself holds only a weak reference to a task.
        self._draining = asyncio.create_task(self._drain_and_exit(), name="drain")

    async def _drain_and_exit(self) -> None:
        log.info("draining", talks=len(self._drain.talks), grace_s=self._grace_s)
        try:
            await self._drain.finish(self._grace_s)
        finally:
            self.should_exit = True
