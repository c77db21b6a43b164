"""Going away without dropping a talk.

Uvicorn, told to stop, closes its listener first and its WebSockets with 1012 at once. So the order is ours: readiness
goes, newcomers still get an answer (4503), running talks get their grace, the rest are told to ask for a new plan, and
only when every talk's turns are kept does uvicorn hear of it.
"""

import asyncio
import socket
from collections.abc import Mapping
from types import FrameType
from typing import Any, Protocol

import structlog
import uvicorn

from token_broker.server.close_codes import DRAINING, Ending

__all__ = ["GOING_AWAY", "Drain", "DrainingServer"]

log = structlog.get_logger("token_broker.relay")

GOING_AWAY = Ending(DRAINING, "the broker is going away: ask for a new plan")
_FAREWELL_S = 5.0


class Endable(Protocol):
    """A talk, as far as draining is concerned."""

    def end(self, ending: Ending) -> None: ...


class Drain:
    """Whether the process is going away, and the talks that still run."""

    def __init__(self) -> None:
        self.draining = False
        self.talks: set[Endable] = set()
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """From now on newcomers are sent elsewhere."""
        self.draining = True

    def add(self, talk: Endable) -> None:
        self.talks.add(talk)

    def remove(self, talk: Endable) -> None:
        self.talks.discard(talk)
        self._changed.set()

    async def finish(self, grace_s: float) -> None:
        """Returns when no talk runs any more: those that do after `grace_s` are ended, and given 5 s for it."""
        self.begin()
        await self._emptied(grace_s)
        if self.talks:
            log.warning("talks_ended", talks=len(self.talks), why="the grace of BROKER_DRAIN_S is over")
        for talk in list(self.talks):
            talk.end(GOING_AWAY)
        await self._emptied(_FAREWELL_S)

    async def _emptied(self, within_s: float) -> None:
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
        """Runs between two bytecodes of whatever runs: it only asks the loop to begin.

        The signal is not put among those that uvicorn raises again at its end: a drain that went well exits with 0.
        """
        if self._loop is None or self._drain.draining:
            super().handle_exit(sig, frame)
            return
        self._drain.begin()
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        log.info("draining", talks=len(self._drain.talks), grace_s=self._grace_s)
        self._draining = asyncio.create_task(self._drain_and_exit(), name="drain")

    async def _drain_and_exit(self) -> None:
        try:
            await self._drain.finish(self._grace_s)
        finally:
            self.should_exit = True
