"""Resumes a talk whose session is lost: does what the ledger says, on real sockets.

The client's socket stays open. While no session is there, what the client sends waits in the gap. The order is fixed:
the new session has confirmed its settings before `broker.resumed` is told, and what it is told comes before what the
client sent meanwhile.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from strategies.base import SpecSupplier
from strategies.errors import TimedOutError
from strategies.resources import Wanted
from strategies.session_model.agent_settings import Dialect
from strategies.session_model.refused_field import field_to_leave_out, shown_path, without
from strategies.session_model.session_paths import merged
from token_broker.relay.adapters import ProtocolAdapter
from token_broker.relay.azure.connector import NoUpstreamError, UpstreamConnection, UpstreamConnector
from token_broker.relay.client import TalkClient
from token_broker.relay.confirmation.agreement import disagreements
from token_broker.relay.event_text import SESSION_EVENTS, compact, event_of, event_type, parsed
from token_broker.relay.guardrail.held import held_changes
from token_broker.relay.policy.allowlist import Refused, is_plain_append
from token_broker.relay.policy.visibility import without_agents_settings
from token_broker.relay.resume.clocks import ExpiryClock, Resumes, SilenceClock
from token_broker.relay.resume.gap import Gap
from token_broker.relay.resume.ledger import TalkLedger
from token_broker.relay.resume.replay import PROBES, NewSession, replay
from token_broker.relay.resume.restored import Restored
from token_broker.relay.resume.search import SessionSearch
from token_broker.relay.resume.settings_changes import client_settings, formats_of
from token_broker.relay.resume.steps import Ask, Step
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.server.close_codes import SESSION_REFUSED, UPSTREAM_FAILED, Ending
from token_broker.sessions.agents import Agent
from token_broker.settings import Settings

__all__ = ["Reason", "Resumption", "TalkHooks"]

log = structlog.get_logger("token_broker.relay")

Reason = Literal["lost", "silent", "expiring", "quota", "refused"]

_SETTINGS_ID = "broker_settings"
_BURST_CHARS = 65_536  # a second of audio
_BURST_PAUSE_S = 0.03
_BRAKE_S = 0.02  # for each append beyond the audio that is held: speech comes slower than that
_APPEND = "input_audio_buffer.append"
_LONGEST_PARSED = 65_536
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,48}")


@dataclass(frozen=True, slots=True)
class TalkHooks:
    """What a resumption does to its talk.

    `begin_gap` takes the talk's session away, `begin` says by which steps another takes over, `use` gives it that one.
    `forward` handles a client's message as if it had come just now. `next_agent` is whose session the next one is, and
    `confirm_agent` completes a handoff to it. `start` runs a coroutine as one of the talk's tasks, `count` counts a
    resume by resource and outcome.
    """

    begin_gap: Callable[[], None]
    begin: Callable[[UpstreamConnection, Sequence[Step]], None]
    use: Callable[[UpstreamConnection], None]
    forward: Callable[[str, UpstreamConnection], None]
    next_agent: Callable[[], Agent]
    confirm_agent: Callable[[UpstreamConnection], None]
    start: Callable[[Coroutine[Any, Any, None], str], None]
    count: Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class _Next:
    """A session that has confirmed its settings, and what they were made for: an agent and a client's changes."""

    upstream: UpstreamConnection
    session: NewSession
    wanted: tuple[str, dict[str, Any]]


class _RefusedError(NoUpstreamError):
    """A session was opened, and has not confirmed the talk's settings."""


class Resumption:
    """One talk's. `tick` notices a silent session and an end that is near, `resume` finds another session."""

    def __init__(
        self,
        settings: Settings,
        adapter: ProtocolAdapter,
        client: TalkClient,
        *,
        session_id: str,
        connector: UpstreamConnector,
        supply: Callable[[Agent], SpecSupplier],
        turns: TurnRecorder,
        ledger: TalkLedger,
        restored: Restored,
        hooks: TalkHooks,
    ) -> None:
        self._settings = settings
        self._adapter = adapter
        self._client = client
        self._session_id = session_id
        self._connector = connector
        self._supply = supply
        self._turns = turns
        self._ledger = ledger
        self._restored = restored
        self._hooks = hooks
        self._loop = asyncio.get_running_loop()
        self._search = SessionSearch(
            connector.pool,
            lambda resource: tuple(route.name for route in connector.routes[resource]),
            self._asking,
            timeout_s=settings.proxy_connect_timeout_s,
            hold_s=settings.resume_hold_s,
        )
        self._silence = SilenceClock()
        self._expiry = ExpiryClock()
        self._resumes = Resumes()
        self._gap = Gap(ledger.audio.most_chars)
        self._creates_held = 0
        self._has_asked = False  # the next session, which is told the rest now
        self._reason: Reason = "lost"
        self._left: UpstreamConnection | None = None
        self._carrier: UpstreamConnection | None = None
        self._why = ""
        self._next: _Next | None = None
        self._opening = False
        self._notices: list[str] = []

    # --- while a session is there

    def begin(self, upstream: UpstreamConnection) -> None:
        """A session carries the talk from now on. One that was opened to follow another is closed."""
        self._reason, self._left = "lost", None
        self._carrier = upstream
        if self._next is not None:
            self._hooks.start(self._next.upstream.socket.aclose(graceful=False), "talk-left")
            self._next = None
        self._expiry.begin(self._loop.time(), upstream.expires_s)

    def tick(self, now_s: float, upstream: UpstreamConnection, *, events: int, sending: bool) -> None:
        """Leaves a session that is silent, or near its end. `events` counts Azure's, `sending`: the client is slow."""
        ledger, socket = self._ledger, upstream.socket
        ledger.trim(now_s)
        held_up = sending or socket.paused or bool(socket.frames)
        found = self._silence.look(
            now_s,
            due=ledger.due,
            events=events,
            reasons=ledger.facts.reasons or upstream.reasons,
            held_up=held_up,
            spoken=ledger.may_have_spoken,
        )
        if found == "probe":
            self._restored.expect_update()
            socket.send(PROBES[upstream.route.dialect])
        if found == "silent":
            self.fell_silent(upstream)
        elif self._next is None or self._next.upstream.socket.failure is not None:
            self._next = None
            if self._expiry.is_near(now_s) and not self._opening:
                self._opening = True
                self._hooks.start(self._open_next(upstream), "talk-next")
        elif self._expiry.is_latest(now_s) or (
            ledger.at_rest and not held_up and not self._turns.assembler.is_answering(now_s)
        ):
            self.leave(upstream, "expiring", "Azure's session has reached its longest time")

    def fell_silent(self, upstream: UpstreamConnection) -> None:
        """Leaves a session that sends nothing, or takes nothing."""
        if upstream.health is not None:
            upstream.health.failed(TimedOutError("Azure fell silent in a talk"))
        self.leave(upstream, "silent", "Azure fell silent")

    def leave(self, upstream: UpstreamConnection, reason: Reason, why: str) -> None:
        """Leaves this session at once: nothing of it reaches the talk any more. `resume` has to follow.

        `why` is for the client, where no other session is to be had.
        """
        self._reason, self._left, self._why = reason, upstream, why
        self._hooks.begin_gap()
        self._hooks.start(upstream.socket.aclose(graceful=reason == "expiring"), "talk-left")

    # --- while none is there

    async def hold(self, text: str) -> None:
        """Keeps a client's message for the next session, or tells the client that it is not kept."""
        event: dict[str, Any] = {"type": _APPEND}
        if not is_plain_append(text):
            event = (event_of(text) if len(text) <= _LONGEST_PARSED else None) or {}
        kind = event.get("type")
        if kind == _APPEND:
            if not self._gap.add_audio(text):
                await asyncio.sleep(_BRAKE_S)
            return
        if kind == "response.cancel" and not self._creates_held:
            if not self._has_asked:
                self._ledger.stop_asking()  # nothing is active: what would be asked again is meant
                return
            text = compact({name: value for name, value in event.items() if name != "response_id"})
        if not self._gap.add(text):
            full = "Azure is being connected again, and no more events are kept: send this one later"
            await self._tell(self._adapter.error(Refused("gap_full", full), retryable=True))
            return
        if kind == "response.create":
            response = event.get("response")
            self._creates_held += not isinstance(response, dict) or response.get("conversation") != "none"

    def tell_later(self, text: str) -> None:
        """An event of the broker's own that comes up while no session is there."""
        self._notices.append(text)

    async def resume(self, lost: UpstreamConnection) -> Ending | None:
        """Puts another session in place of the one that is over; otherwise says why the talk ends."""
        began_s = self._loop.time()
        if self._left is None:
            refused = self._ledger.was_refused(began_s)
            why = lost.socket.failure or "the connection to Azure broke"
            self.leave(lost, "refused" if refused else "lost", why)
        reason, old = self._reason, self._left or lost
        found, self._next = self._next, None
        if found is not None and (found.upstream.socket.failure is not None or found.wanted != self._wanted()):
            # It broke meanwhile, or was made for another agent or other settings.
            self._hooks.start(found.upstream.socket.aclose(graceful=False), "talk-left")
            found = None
        try:
            handover = self._ledger.cut(began_s)
            self._turns.cut(handover.unsaid, began_s)
            for event in handover.endings:  # for the client, what was open ends
                self._notices += self._adapter.to_client(without_agents_settings(event), old.route.dialect)
            for text in self._notices:
                await self._tell(text)
            self._notices.clear()
            if reason != "expiring" and not self._resumes.begin(began_s, completed=self._ledger.completed):
                raise NoUpstreamError(Ending(UPSTREAM_FAILED, "Azure broke off again and again"))
            if reason != "expiring":
                self._search.failed_at(old.resource)
            await self._tell(self._adapter.resuming(reason))
            found = found or await self._connect(old)
            try:
                async with asyncio.timeout(self._settings.proxy_connect_timeout_s):
                    await self._take_over(old, found.upstream, found.session)
            except TimeoutError:
                raise NoUpstreamError(Ending(UPSTREAM_FAILED, "Azure takes no data")) from None
            if reason == "expiring":
                self._expiry.moved(self._loop.time())
        except NoUpstreamError as error:
            if found is not None:
                await found.upstream.socket.aclose(graceful=False)
            if error.ending.told:  # the client is to know that another plan is of no use
                self._failed(error.ending.reason, reason, old.resource)
                return error.ending
            return self._failed(error.ending.reason.partition(":")[0], reason, old.resource)
        except BaseException:
            if found is not None:
                await found.upstream.socket.aclose(graceful=False)
            raise
        self._hooks.count(old.resource, reason)
        log.info(
            "talk_resumed",
            session_id=self._session_id,
            reason=reason,
            resource=found.upstream.resource,
            upstream=found.upstream.route.name,
            ms=round((self._loop.time() - began_s) * 1000),
        )
        return None

    async def aclose(self) -> None:
        """The talk is over: closes a session that was opened for later, and waits for no quota any more."""
        self._connector.pool.give_up(self._session_id)
        if self._next is not None:
            await self._next.upstream.socket.aclose(graceful=False)

    # --- parts of the above

    def _wanted(self) -> tuple[str, dict[str, Any]]:
        return (self._hooks.next_agent().id, self._ledger.settings)

    def _asking(self) -> Wanted:
        return self._hooks.next_agent().wanted(self._session_id, running=True)

    def _failed(self, why: str, reason: Reason, lost_at: str) -> Ending:
        fault = self._ledger.fault
        lost = f"{self._why} ({fault})" if _CODE.fullmatch(fault) else self._why
        self._hooks.count(lost_at, "failed")
        log.warning("talk_not_resumed", session_id=self._session_id, reason=reason, lost=lost, why=why)
        return Ending(UPSTREAM_FAILED, f"{lost}: ask for a new plan")

    async def _connect(self, old: UpstreamConnection) -> _Next:
        """A session that has confirmed the talk's settings. Raises NoUpstreamError."""

        async def attempt(wanted: Wanted) -> _Next:
            try:
                return await self._attempt(old, wanted)
            except _RefusedError:
                await self._tell(self._adapter.resuming("refused"))
                raise

        async def hold(for_s: float) -> None:
            await self._tell(self._adapter.resuming("quota", retry_after_s=for_s))

        return await self._search.find(attempt, hold)

    async def _attempt(self, old: UpstreamConnection, asking: Wanted) -> _Next:
        wanted = self._wanted()
        supply = self._supply(self._hooks.next_agent())
        refused: list[str] = []  # where Azure did not take the agent's settings
        try:
            new = await self._connector.connect(supply, wanted=asking, after=old, on_refused=refused.append)
        finally:
            if refused and self._left is not None:  # otherwise the talk goes on meanwhile
                await self._tell(self._adapter.resuming("refused"))
        try:
            return _Next(new, await self._confirmed(new, old.route.dialect), wanted)
        except NoUpstreamError as error:
            self._search.failed_at(new.resource)
            await new.socket.aclose(graceful=False)
            raise _RefusedError(error.ending) from None
        except BaseException:
            await new.socket.aclose(graceful=False)
            raise

    async def _confirmed(self, new: UpstreamConnection, old: Dialect) -> NewSession:
        """The session, once Azure has confirmed the client's settings, too. Raises NoUpstreamError.

        A field that a refusal names is left out, once. Formats are never left out.
        """
        settings = dict(new.session)
        may_set = self._hooks.next_agent().client_may_set
        changes = client_settings(self._ledger.settings, old=old, new=new.route.dialect, may_set=may_set)
        if self._hooks.next_agent().guardrail is not None:
            changes = held_changes(changes)
        formats = formats_of(changes)
        left_out = False
        while changes:
            update = {"type": "session.update", "event_id": _SETTINGS_ID, "session": changes}
            new.socket.send(compact(update))
            event = await _answer_to_update(new)
            if event["type"] == "session.updated":
                settings = merged(settings, changes)
                if wrong := disagreements(settings, event.get("session")):
                    log.error("session_not_the_agents", fields=wrong)
                    raise NoUpstreamError(SESSION_REFUSED)
                new.first.append(compact(event))
                break
            error = event.get("error")
            path = None if left_out else field_to_leave_out(error if isinstance(error, dict) else {}, changes)
            named = None if path is None else shown_path(path)
            log.warning("client_settings_refused", session_id=self._session_id, field=named)
            if changes == formats:  # the client would play noise
                raise NoUpstreamError(SESSION_REFUSED)
            changes = formats if path is None else without(changes, path)
            left_out = True
        return NewSession(new.route.dialect, settings)

    async def _take_over(self, old: UpstreamConnection, new: UpstreamConnection, session: NewSession) -> None:
        """Tells the client, then the session what it has to know, then what the client sent meanwhile."""
        ledger = self._ledger
        now_s = self._loop.time()
        for text in new.first:
            if event_type(text) in SESSION_EVENTS:
                event = parsed(text)
                ledger.azure_sent(event, now_s)
                self._turns.feed(event, now_s)
        new.first.clear()
        await self._tell(self._adapter.resumed(new))
        self._restored.begin()
        old_dialect = old.route.dialect
        changes = ledger.settings
        if old_dialect != new.route.dialect:
            may_set = self._hooks.next_agent().client_may_set
            changes = client_settings(changes, old=old_dialect, new=new.route.dialect, may_set=may_set)
        if self._creates_held:  # the client's own question answers all that was said
            ledger.stop_asking()
        steps = ledger.steps()
        self._has_asked = any(isinstance(step, Ask) for step in steps)
        made = replay(steps, session, old=old_dialect, restored=self._restored)
        ledger.moved(replayed_chars=made.committed_chars, listened_chars=made.open_chars, settings=changes)
        for notice in self._notices:
            new.socket.put(notice)
        self._notices.clear()
        sent_chars = 0
        for message in made.messages:
            new.socket.send(message)
            sent_chars += len(message)
            if sent_chars >= _BURST_CHARS:
                sent_chars = 0
                await asyncio.sleep(_BURST_PAUSE_S)
            await new.socket.drained()
        self._hooks.begin(new, steps)
        self._hooks.confirm_agent(new)
        while (held := self._gap.take()) is not None:
            self._hooks.forward(held, new)
            await new.socket.drained()
        if self._gap.audio_dropped:
            log.warning("gap_audio_dropped", session_id=self._session_id, appends=self._gap.audio_dropped)
            self._gap.audio_dropped = 0
        self._creates_held, self._has_asked = 0, False
        self._hooks.use(new)

    async def _open_next(self, old: UpstreamConnection) -> None:
        """Opens the session that the talk moves to at the next pause; where none is to be had, the old one goes on."""
        try:
            async with asyncio.timeout(self._settings.proxy_connect_timeout_s):
                found = await self._attempt(old, self._asking())
            if self._carrier is not old:  # the talk has moved meanwhile
                await found.upstream.socket.aclose(graceful=False)
                return
            self._next = found
        except (NoUpstreamError, TimeoutError) as error:
            log.warning("next_session_not_opened", session_id=self._session_id, why=type(error).__name__)
            left_s = self._expiry.failed(self._loop.time())
            told = None if left_s is None else self._adapter.announce_end(left_s)
            if told is not None and self._left is None:
                old.socket.put(told)
        finally:
            self._opening = False

    async def _tell(self, text: str | None) -> None:
        if text is not None and not self._client.gone:
            await self._client.tell(text)


async def _answer_to_update(new: UpstreamConnection) -> dict[str, Any]:
    """The event by which Azure confirms or refuses the client's settings. Raises NoUpstreamError."""
    socket = new.socket
    while True:
        await socket.wait()
        if not socket.frames:
            raise NoUpstreamError(Ending(UPSTREAM_FAILED, socket.failure or "the connection to Azure broke"))
        text = socket.take()
        if event_type(text) in {"session.updated", "error"}:
            event = parsed(text)
            if isinstance(event, dict):
                return event
