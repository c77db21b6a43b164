"""The sideband of a relayed WebRTC call: Azure tells us the call's events, so that its turns are kept.

For the calls of clients that report no turns themselves: media and events flow between them and Azure, past us. Azure
lets the resource's owner join such a call by its id (azure-facts.md §2). The call does not depend on it: where it can't
be joined the talk goes on, and only its turns are missing, which is logged.

What such a client sends to Azure nobody checks on the way. Some of them say instructions of their own as soon as they
are connected: so whenever the session is no longer the agent's, it is said anew.
"""

import asyncio
import json
from typing import Any

import structlog

from strategies.base import SessionSpec
from strategies.errors import MintError, MisconfiguredError, PermanentError
from strategies.session_body import ga_session
from token_broker.agents import Agent
from token_broker.memory.base import Owner, TurnIntake
from token_broker.relay.closing import DONE, UPSTREAM_FAILED, Ending
from token_broker.relay.counters import RelayCounters, TalkCounters
from token_broker.relay.event_text import compact
from token_broker.relay.events import OWN_EVENT_IDS, SESSION_EVENTS
from token_broker.relay.keeping import TurnKeeper
from token_broker.relay.policy import event_type
from token_broker.relay.socket import CLOSED_BY_AZURE, AzureSocket
from token_broker.relay.turns import TURN_EVENTS
from token_broker.relay.upstreams import UpstreamConnector
from token_broker.settings import Settings

__all__ = ["CallListener"]

log = structlog.get_logger("token_broker.relay")

_LOOK_S = 1.0
_PAUSES_S = (0.3, 1.0, 3.0)
_STEADY_S = 10.0  # a connection that lasted so long did not fail from the start
_REMINDERS_AT_MOST = 100
_HEARD = TURN_EVENTS | SESSION_EVENTS
_HUNG_UP = Ending(DONE, "the call has ended")


class CallListener:
    """Hears one call from its answer to its end, as one of the talks that draining waits for."""

    def __init__(
        self,
        *,
        settings: Settings,
        connector: UpstreamConnector,
        intake: TurnIntake,
        counters: RelayCounters,
        owner: Owner,
        agent: Agent,
        spec: SessionSpec,
    ) -> None:
        self.counters = TalkCounters()
        self._settings = settings
        self._connector = connector
        self._all = counters
        self._owner = owner
        self._agent = agent
        self._spec = spec
        self._reminders = 0
        self._unmended: dict[str, Any] | None = None  # what the last reminder was to mend
        self._now_s = asyncio.get_running_loop().time
        self._over: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._turns = TurnKeeper(owner, agent.id, intake=intake, counters=self.counters, on_lost=self._note_lost)

    def end(self, ending: Ending) -> None:
        """Stops listening, for this reason; the call goes on."""
        if not self._over.done():
            self._over.set_result(ending)

    async def run(self, endpoint: str, call_id: str) -> Ending:
        """Listens until the call is over, or has reached the longest time of a talk. Never raises MintError."""
        until_s = self._now_s() + self._settings.max_talk_s
        heard = False
        breaks = 0  # one soon after the other
        try:
            while not self._over.done():
                if breaks > 1:
                    await asyncio.wait((self._over,), timeout=_PAUSES_S[breaks - 2])
                socket = await self._join(endpoint, call_id)
                heard, joined_s = True, self._now_s()
                try:
                    ending = await self._listen(socket, until_s)
                finally:
                    await socket.aclose()
                if ending is not None:
                    return ending
                breaks = breaks + 1 if self._now_s() - joined_s < _STEADY_S else 1
                log.info("sideband_broke", session_id=self._owner.session_id)
                if breaks > 1 + len(_PAUSES_S):
                    log.warning("sideband_refused", session_id=self._owner.session_id, why="it breaks again and again")
                    return Ending(UPSTREAM_FAILED, "Azure let nobody listen for long")
            return self._over.result()
        except MintError as error:
            if self._over.done():
                return self._over.result()
            if heard and isinstance(error, PermanentError):
                return _HUNG_UP  # it broke, and now there is no such call
            log.warning("sideband_refused", session_id=self._owner.session_id, outcome=error.outcome, why=str(error))
            return Ending(UPSTREAM_FAILED, "Azure let nobody listen")
        finally:
            self._turns.flush()

    async def _join(self, endpoint: str, call_id: str) -> AzureSocket:
        """Joins the call, which Azure may not know everywhere as soon as it has answered. Raises MintError."""
        for pause_s in _PAUSES_S:
            try:
                return await self._connector.join_call(endpoint, call_id)
            except MisconfiguredError:
                raise
            except MintError:
                await asyncio.wait((self._over,), timeout=pause_s)
                if self._over.done():
                    raise
        return await self._connector.join_call(endpoint, call_id)

    async def _listen(self, socket: AzureSocket, until_s: float) -> Ending | None:
        """Why it is over; None where the connection broke, and the call may go on."""
        pinged_s = self._now_s()
        while not self._over.done():
            now_s = self._now_s()
            self._turns.tell_due(now_s)
            if socket.frames:
                self._hear(socket)
            elif socket.failure is not None:
                return _HUNG_UP if socket.failure == CLOSED_BY_AZURE else None
            elif now_s >= until_s:
                return Ending(DONE, "the talk has reached its longest time")
            elif now_s - pinged_s >= self._settings.ping_interval_s:
                pinged_s = now_s
                if not socket.ping():
                    return None
            else:
                await self._something(socket)
        return self._over.result()

    async def _something(self, socket: AzureSocket) -> None:
        """Waits for a frame, for `end`, or for a moment."""
        frame = asyncio.ensure_future(socket.wait())
        try:
            await asyncio.wait((frame, self._over), timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            frame.cancel()
            await asyncio.wait((frame,))

    def _hear(self, socket: AzureSocket) -> None:
        kind = event_type(text := socket.take())
        if kind not in _HEARD:
            return
        try:
            event: Any = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            return
        if kind in SESSION_EVENTS:
            self._remind(socket, event.get("session"))
            return
        if kind == "response.done":
            self._all.count_usage_of(
                event, principal=self._owner.principal, agent_id=self._agent.id, talk=self.counters
            )
        self._turns.feed(event, self._now_s())

    def _remind(self, socket: AzureSocket, session: Any) -> None:
        """Says the agent's instructions, tools and transcription again where the session has others."""
        own = ga_session(self._spec)
        audio_in = {"transcription": own["audio"]["input"]["transcription"]}
        wanted = {"instructions": own["instructions"], "tools": own.get("tools", []), "audio": {"input": audio_in}}
        if not isinstance(session, dict) or self._reminders >= _REMINDERS_AT_MOST:
            return
        said = None if _agrees(session, wanted) else {name: session.get(name) for name in wanted}
        unmended, self._unmended = self._unmended, said
        if said is None or said == unmended:
            return
        self._reminders += 1
        update = {"type": "session.update", "event_id": f"{OWN_EVENT_IDS}reminder_{self._reminders}"}
        socket.send(compact({**update, "session": {"type": "realtime", **wanted}}))

    def _note_lost(self) -> None:
        log.warning("turn_lost", session_id=self._owner.session_id, why="the memory is full")


def _agrees(said: Any, wanted: Any) -> bool:
    """Whether `said` has all that is `wanted`; what else it has is its own affair."""
    if isinstance(wanted, dict):
        return isinstance(said, dict) and all(_agrees(said.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        said = said or []
        return len(said) == len(wanted) and all(map(_agrees, said, wanted))
    return bool(said == wanted)
