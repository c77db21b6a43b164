"""The sideband of a session with GPT-Live over WebRTC: turns, tools and usage are the broker's from there.

Azure takes one sideband a session, as far as is known, so the official clients' sidebands are observers of ours. The
session is over when Azure says so, or does not know it any more; a connection that ends is opened again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from token_broker.calls.listener import SidebandListener
from token_broker.relay.answers.turn_clock import TurnLatency
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.event_text import compact, event_of
from token_broker.relay.live.client_policy import PRIMARY_ONLY, examine_live
from token_broker.relay.live.delegations import Delegations, greeting_appends
from token_broker.relay.live.faces import CompatFace
from token_broker.relay.live.goodbye import Goodbye
from token_broker.relay.live.session_events import AUDIO_DELTA, LiveEvents
from token_broker.relay.live.sidebands import LiveSidebands, Sideband
from token_broker.relay.live.spoken_turns import LiveTurns
from token_broker.relay.policy.allowlist import Broken, Command, Refused, event_id_of
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.server.close_codes import Ending

__all__ = ["LiveListener", "SidebandObserver"]

_WAITING_AT_MOST = 512  # events for an observer that is too slow
_HELD_AT_MOST = 16  # events of observers while nothing is joined


class SidebandObserver:
    """An official client's sideband of the session. `is_over`: nothing more comes; `is_slow`: it has missed some."""

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()
        self.changed = asyncio.Event()
        self.is_over = self.is_slow = False

    def put(self, text: str) -> None:
        """Gives it an event."""
        self.is_slow |= len(self.waiting) >= _WAITING_AT_MOST
        if not self.is_slow:
            self.waiting.append(text)
        self.changed.set()

    def end(self) -> None:
        """The session is over, or is heard no more."""
        self.is_over = True
        self.changed.set()


class LiveListener(SidebandListener):
    """Listens to a session of GPT-Live's. `backend`: its delegated work goes to Azure's Responses.

    `engaged` is called where the session has to stay at this replica from now on (`is_engaged`).
    """

    dialect = "live"

    def __init__(
        self,
        parts: TalkParts,
        sidebands: LiveSidebands,
        *,
        backend: bool = False,
        engaged: Callable[[], None] = lambda: None,
        **about: Any,
    ) -> None:
        super().__init__(parts, **about)
        self._engaged = engaged
        self._sidebands = sidebands
        self._backend = backend
        self._face = CompatFace()
        self._heard_s = self._now_s()
        self._sideband: Sideband | None = None
        self._observers: set[SidebandObserver] = set()
        self._held: deque[tuple[str, SidebandObserver]] = deque()  # what they sent while nothing was joined
        self._goodbye = Goodbye()
        self._source = source = LiveTurns()
        about = {"send": self._send, "tell": self._tell_call, "words": source.take_words, "start": self._start}
        self._events = LiveEvents(
            parts,
            self.owner,
            self._agent.id,
            TurnRecorder(
                self.owner,
                self._agent.id,
                ingest=parts.ingest,
                counters=self.counters,
                on_lost=self._log_lost_turn,
                source=source,
            ),
            source,
            Delegations(self._agent, self._calls, typed=self._keep_typed, **about),
            self.counters,
            self._note_wait,
            self._now_s,
            self._usage,
        )

    def moved(self, ending: Ending) -> None:
        """Another process holds the session, and has to join it: Azure takes one sideband."""
        self.end(ending)

    @property
    def observers(self) -> int:
        """How many observe it."""
        return len(self._observers)

    @property
    def is_engaged(self) -> bool:
        """Whether the session has to stay here: somebody observes it, or works for it."""
        delegations = self._events.delegations
        return bool(self._observers or self._held or delegations.is_acting or delegations.calls_of_client)

    def observe(self, observer: SidebandObserver) -> None:
        """From now on `observer` gets the session's events, until `leave`; first the calls that wait for an output."""
        self._observers.add(observer)
        self._engaged()
        for call in self._events.delegations.calls_of_client:
            observer.put(compact(call))
        if self._end.over.done():
            observer.end()

    def leave(self, observer: SidebandObserver) -> None:
        """The observer is gone."""
        self._observers.discard(observer)

    def from_observer(self, text: str, observer: SidebandObserver) -> Broken | str | None:
        """Takes an event of an observer's: an error event for it, None where it goes to Azure, Broken: it is none.

        While the session is being joined again, a few wait.
        """
        event = event_of(text) or {}
        event_id = event_id_of(event)
        if (sideband := self._sideband) is None and isinstance(event.get("type"), str):
            if len(self._held) >= _HELD_AT_MOST:
                why = "Azure is being joined again: send this later"
                return self._face.error(Refused("not_joined", why, None, event_id))
            self._held.append((text, observer))
            return None
        found = examine_live(text, self._events.delegations, backend=self._backend)
        if event.get("type") in PRIMARY_ONLY:
            why = "not over a sideband: the session runs, and has its own audio"
            found = Refused("not_permitted", why, "type", event_id)
        if isinstance(found, Command):
            found = Refused("unknown_event", "there is no such event", "type", event_id)
        if isinstance(found, Refused):
            self.counters.refused_events += 1
            return self._face.error(found)
        if isinstance(found, Broken):
            return found
        if found and sideband is not None:
            sideband.socket.send(found)
        return None

    async def _join(self, endpoint: str, call_id: str) -> AzureSocket:
        self._sideband = await self._sidebands.open(endpoint, call_id)
        return self._sideband.socket

    def _joined(self, socket: AzureSocket) -> None:
        del socket
        self._heard_s = self._now_s()
        if self._joins == 1:
            self._events.begin(self._resource, self._call[1])
            if self._agent.greeting and self._greets():
                for event in greeting_appends(self._agent.greeting):
                    self._send(event)
        while self._held:
            text, observer = self._held.popleft()
            if (error := self.from_observer(text, observer)) is not None:
                observer.put(str(error))

    def _left(self) -> None:
        sideband, self._sideband = self._sideband, None
        if sideband is not None:
            self._sidebands.release(*self._call, sideband)

    async def _release(self) -> None:
        self._events.turns.flush()
        for observer in self._observers:
            observer.end()

    def _tick(self, now_s: float) -> None:
        del now_s
        for told in self._events.tick():
            self._tell_all(told)

    def _is_session_over(self) -> bool:
        return self._sideband is not None and self._sideband.over.is_set()

    def _is_playing(self, now_s: float) -> bool:
        return now_s < self._source.plays_until_s

    def _is_idle(self, now_s: float) -> bool:
        return now_s - self._heard_s >= self._parts.settings.call_idle_s

    def _ask_for_end(self, call_id: str) -> None:
        del call_id
        self._goodbye.ask(self._now_s())

    def _takes_leave(self, now_s: float) -> bool:
        is_over = self._goodbye.is_over(now_s, agent_until_s=self._source.plays_until_s)
        if is_over:
            self._goodbye.take_back()
        return is_over

    def _handle(self, socket: AzureSocket) -> None:
        events = self._events.handle(socket.take())
        if self._source.due_s is not None or self._events.delegations.is_acting:
            self._heard_s = self._now_s()
        if self._source.awaits_user:
            self._goodbye.take_back()
        for event in events or ():
            if AUDIO_DELTA not in event[:64]:  # the audio has a line of its own
                self._tell_all(event)
        if self._events.closed is not None and self._sideband is not None:
            self._sideband.over.set()

    def _tell_all(self, text: str) -> None:
        for observer in self._observers:
            observer.put(text)

    def _send(self, event: Mapping[str, Any]) -> None:
        if self._sideband is not None:
            self._sideband.socket.send(compact(event))

    def _keep_typed(self, text: str, item_id: str | None) -> None:
        self._goodbye.take_back()
        self._events.typed(text, item_id)

    def _note_wait(self, turn: TurnLatency) -> str | None:
        self._parts.note_answer(turn, transport=self._transport, agent_id=self._agent.id, resource=self._resource)
        self._page.tell("broker.latency", **turn.fields)
        return None
