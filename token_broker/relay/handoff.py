"""The handoff to another agent in the middle of a talk.

Where voice and deployment stay the same, the same upstream gets the new agent's session. A voice cannot change once it
has spoken (docs/azure.md §4.2), so another voice needs another upstream. So does an agent that is not permitted on the
resource of the talk. It gets the last turns, and what has no answer yet, as after a resume. Either way the new agent
knows what was recalled.

The client asks for it, or the model does by the tool `handoff`. What the model asks for is done when all calls of its
answer have their outputs, and no answer is asked for meanwhile: the new agent gives the next one, which says in a line
of context who handed over, and why.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from strategies.base import SessionSpec, SpecSupplier
from strategies.resources import Resource, is_allowed
from strategies.session_model.running_session import handoff_session, is_same_session
from strategies.session_model.session_paths import ABSENT, DETECTION, put, value_of
from token_broker.relay.azure.connector import NoUpstreamError, UpstreamConnection, UpstreamConnector
from token_broker.relay.confirmation.confirmation import Confirmation
from token_broker.relay.dialects.broker_events import OWN_EVENT_IDS, broker_error
from token_broker.relay.event_text import event_of
from token_broker.relay.guardrail.held import held_session
from token_broker.relay.policy.allowlist import Refused
from token_broker.relay.resume.settings_changes import client_settings, with_changes
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.security.limits import RateLimit
from token_broker.server.close_codes import UPSTREAM_FAILED, Ending
from token_broker.sessions.agents import Agent, AgentRegistry
from token_broker.web.requests import uuid7

__all__ = ["AgentHandoff", "HandoffHooks", "switch_refusal"]

_HANDOFFS_PER_MINUTE = 30  # each may open a connection to Azure and send the whole history
_HANDOFFS_AT_ONCE = 10
_UNASKED_AT_MOST = 4  # by the model, without a word of the user's in between
_LONGEST_MESSAGE_CHARS = 1_000
_CONTEXT_ID = f"{OWN_EVENT_IDS}context_"

_NOT_NOW = "The talk was not handed over: another change of agent is under way. Go on yourself."
_TOO_OFTEN = (
    "The talk was not handed over: it has changed hands several times without a word of the user's. Go on yourself."
)
_ITSELF = "You are this agent already. Go on yourself."
_NOWHERE = "The talk can't be handed over to this agent now. Go on yourself."
_UNKNOWN = "There is no agent {name} that you may hand over to. You may hand over to: {names}."
_MALFORMED = "The talk was not handed over: agent_id has to be the id of an agent, and message a text."
_DONE = "The talk is handed over to {name}, who speaks next."


def switch_refusal(event: Mapping[str, Any], agents: AgentRegistry, current: Agent) -> Refused | None:
    """Why a client's `broker.agent.switch` is refused; None: the agent that it names may have the talk."""
    agent_id = event.get("agent_id")
    agent = agents.get(agent_id) if isinstance(agent_id, str) else None
    if agent is None:
        return Refused("unknown_agent", f"there is no such agent; the known ones are {', '.join(agents)}")
    if agent.id != current.id and agent.id not in current.handoff_ids:
        may = ", ".join(current.handoff_ids) or "none"
        message = f"this agent does not hand over to that one; those that it hands over to: {may}"
        return Refused("agent_not_permitted", message)
    return None


@dataclass(frozen=True, slots=True)
class _Wish:
    """A handoff that the model has asked for, and why."""

    agent: Agent
    message: str


@dataclass(frozen=True, slots=True)
class _Unconfirmed:
    """A handoff on the same upstream that Azure has not confirmed yet, and until when it may."""

    agent: Agent
    asked: Confirmation
    until_s: float


@dataclass(frozen=True, slots=True)
class HandoffHooks:
    """What a talk does for its handoffs.

    `supply` gives an agent's spec with what was recalled, `changes` what the client has changed of the session. `start`
    runs a coroutine as one of the talk's tasks. `move` makes a new upstream with these settings the talk's own in place
    of another, and says whether it did. `lost` leaves an upstream that does
    not confirm. `tell` tells the client something, `switched` is what it hears of a change. `send` gives Azure an item
    of the broker's own, `want` asks for the new agent's answer. `changed` is told the current agent. `time_s` is the
    loop's clock.
    """

    supply: Callable[[Agent], SpecSupplier]
    changes: Callable[[], Mapping[str, Any]]
    start: Callable[[Coroutine[Any, Any, None], str], None]
    move: Callable[[UpstreamConnection, UpstreamConnection, dict[str, Any]], bool]
    lost: Callable[[UpstreamConnection], None]
    tell: Callable[[str], None]
    switched: Callable[[str], str | None]
    send: Callable[[Mapping[str, Any]], None]
    want: Callable[[], None]
    changed: Callable[[Agent], None]
    time_s: Callable[[], float]


class AgentHandoff:
    """The current agent of one talk, and the handoff to another. Azure has `timeout_s` for each."""

    def __init__(
        self,
        agent: Agent,
        *,
        session_id: str,
        agents: AgentRegistry,
        connector: UpstreamConnector,
        turns: TurnRecorder,
        hooks: HandoffHooks,
        timeout_s: float,
    ) -> None:
        self.agent = agent
        self.count = 0
        self._session_id = session_id
        self._agents = agents
        self._connector = connector
        self._turns = turns
        self._hooks = hooks
        self._timeout_s = timeout_s
        self._rate = RateLimit(_HANDOFFS_PER_MINUTE, burst=_HANDOFFS_AT_ONCE)
        self._requests = 0
        self._pending = False
        self._unconfirmed: _Unconfirmed | None = None
        self._wish: _Wish | None = None
        self._context = ""  # for the agent that goes on, where the model asked for the handoff
        self._unasked = 0

    def request(self, event: Mapping[str, Any], upstream: UpstreamConnection) -> None:
        """Starts what the client's `broker.agent.switch` asks for. The client hears the outcome as a broker event."""
        if (refusal := switch_refusal(event, self._agents, self.agent)) is not None:
            upstream.socket.put(broker_error(refusal.code, refusal.message))
        elif self._pending or self._wish is not None:
            upstream.socket.put(broker_error("switch_pending", "another change of agent is under way", retryable=True))
        elif self._rate.take("") is not None:
            message = "too many changes of agent: wait a few seconds"
            upstream.socket.put(broker_error("too_many_switches", message, retryable=True))
        else:
            self._begin(self._agents[event["agent_id"]], upstream)

    def request_by_model(self, arguments: str) -> tuple[str, bool]:
        """The output of a call of `handoff`, and whether the talk is handed over: then as soon as it `is_quiet`."""
        stated = event_of(arguments) or {}
        agent_id, message = stated.get("agent_id"), stated.get("message") or ""
        if not isinstance(agent_id, str) or not isinstance(message, str):
            return _MALFORMED, False
        if agent_id == self.agent.id:
            return _ITSELF, False
        agent = self._agents.get(agent_id) if agent_id in self.agent.handoff_ids else None
        if agent is None:
            names = ", ".join(self.agent.handoff_ids) or "nobody"
            return _UNKNOWN.format(name=repr(agent_id[:64]), names=names), False
        if self._pending or self._wish is not None:
            return _NOT_NOW, False
        if self._unasked >= _UNASKED_AT_MOST or self._rate.take("") is not None:
            return _TOO_OFTEN, False
        if not self._connector.pool.allowed(agent.wanted(self._session_id, running=True)):
            return _NOWHERE, False
        self._unasked += 1
        self._wish = _Wish(agent, message.strip()[:_LONGEST_MESSAGE_CHARS])
        return _DONE.format(name=agent.name), True

    @property
    def next_agent(self) -> Agent:
        """Whose session the next one is: where a handoff is not confirmed yet, the agent that it asks for."""
        return self.agent if self._unconfirmed is None else self._unconfirmed.agent

    @property
    def holds(self) -> bool:
        """Whether no answer may be asked for, since another agent is to give it."""
        return self._wish is not None or (self._pending and bool(self._context))

    def user_spoke(self) -> None:
        """The user has said something: the model may hand over again."""
        self._unasked = 0

    def is_quiet(self, upstream: UpstreamConnection) -> None:
        """No answer is made, and no call waits for its output: what the model asked for is done now."""
        wish, self._wish = self._wish, None
        if wish is not None:
            reason = f" The reason: {wish.message}" if wish.message else ""
            self._context = (
                f"{self.agent.name} has handed this conversation over to you, {wish.agent.name}.{reason} Go on from "
                "here as yourself: do not greet as if the conversation began, and do not ask what was said already."
            )
            self._begin(wish.agent, upstream)

    def session_told(self, event: Mapping[str, Any], upstream: UpstreamConnection) -> None:
        """Azure shows the session. It may answer an update of the client's, and not yet that of the handoff."""
        waiting = self._unconfirmed
        if waiting is not None and not waiting.asked.disagreements(event.get("session")):
            self.confirm(upstream)

    def confirm(self, upstream: UpstreamConnection) -> None:
        """Completes an unconfirmed handoff: the session is the other agent's."""
        if (waiting := self._unconfirmed) is None:
            return
        self._unconfirmed = None
        self._pending = False
        left_out = waiting.asked.left_out
        self._connector.settings_report.note_left_out(left_out, resource=upstream.resource, agent_id=waiting.agent.id)
        if (told := self._hooks.switched(waiting.agent.id)) is not None:
            upstream.socket.put(told)
        self._set_agent(waiting.agent)

    def tick(self, now_s: float, upstream: UpstreamConnection) -> None:
        """Leaves a session that has not become the other agent's in time: nobody knows whose it is."""
        if self._unconfirmed is not None and now_s >= self._unconfirmed.until_s:
            self._hooks.lost(upstream)

    def owns_error(self, event: Mapping[str, Any], upstream: UpstreamConnection) -> bool:
        """Whether Azure's error is about an event that the broker sent, and so is not shown to the client."""
        error = event.get("error")
        event_id = error.get("event_id") if isinstance(error, dict) else None
        if not isinstance(event_id, str) or not event_id.startswith(OWN_EVENT_IDS):
            return False
        waiting = self._unconfirmed
        if waiting is not None and waiting.asked.event_id == event_id:
            if waiting.asked.refused(error):
                upstream.socket.send(waiting.asked.update)
            else:  # Azure has refused it as a whole: the session is the old agent's still
                self._unconfirmed = None
                self._connector.settings_report.note_refused(resource=upstream.resource, agent_id=waiting.agent.id)
                self._failed("Azure refused the change of agent")
        return True

    def _begin(self, agent: Agent, upstream: UpstreamConnection) -> None:
        self._pending = True
        self._requests += 1
        self._hooks.start(self._hand_off(agent, upstream), "talk-handoff")

    def _failed(self, why: str) -> None:
        """The old agent goes on. Where the model asked for the handoff, it hears that there was none."""
        self._pending = False
        if self._hooks.switched(self.agent.id) is not None:  # a client that knows of agents
            self._hooks.tell(broker_error("switch_failed", why, retryable=True))
        if self._context:
            self._context = "The conversation could not be handed over. Go on yourself, and tell the user so."
            self._go_on()

    async def _hand_off(self, agent: Agent, old: UpstreamConnection) -> None:
        dialect = old.route.dialect
        wanted = agent.wanted(self._session_id, running=True)
        resource = self._connector.resource(old.resource)
        changes = client_settings(self._hooks.changes(), old=dialect, new=dialect, may_set=agent.client_may_set)
        same_voice = agent.voices[dialect] == self.agent.voices[dialect]
        same_model = (agent.model or resource.model) == old.model
        fits = same_voice and same_model and is_same_session(self.agent.settings, agent.settings, dialect)
        if fits and is_allowed(resource, wanted):
            session = await self._differing(agent, old, resource)
            asked = Confirmation(session, event_id=f"{OWN_EVENT_IDS}handoff_{self._requests}")
            self._unconfirmed = _Unconfirmed(agent, asked, self._hooks.time_s() + self._timeout_s)
            old.socket.send(asked.update)
            return

        async def supply(resource: Resource) -> SessionSpec:
            return with_changes(await self._hooks.supply(agent)(resource), dialect, changes)

        # The old upstream carries the talk until the new one is ready, and keeps it where none can be had.
        try:
            # The same route: the client has been told its dialect, and a compatible client cannot change it.
            new = await self._connector.connect(supply, wanted=wanted, only=old.route.name)
            if (told := self._hooks.switched(agent.id)) is not None:
                new.first.insert(0, told)
            if not self._hooks.move(old, new, dict(new.session)):  # the old one was lost meanwhile
                await new.socket.aclose()
                raise NoUpstreamError(Ending(UPSTREAM_FAILED, "the upstream was lost"))
        except NoUpstreamError:
            self._failed("Azure took no talk with the other voice")
            return
        except BaseException:
            self._pending = False
            raise
        self._pending = False
        self._set_agent(agent)
        await old.socket.aclose()

    async def _differing(self, agent: Agent, old: UpstreamConnection, resource: Resource) -> dict[str, Any]:
        """What a session of the current agent is told to become the other's. Formats and permitted settings stay."""
        dialect = old.route.dialect
        spec, before = await self._hooks.supply(agent)(resource), await self._hooks.supply(self.agent)(resource)
        may_set = agent.client_may_set
        session = handoff_session(before, spec, dialect, changes=self._hooks.changes(), may_set=may_set)
        if spec.holds_answers == before.holds_answers:
            return session
        # Whether it answers by itself changes, whatever else of its turn detection stays.
        changes = client_settings(self._hooks.changes(), old=dialect, new=dialect, may_set=may_set)
        whole = old.route.session(with_changes(spec, dialect, changes))
        whole = held_session(whole, dialect) if spec.holds_answers else whole
        detection = value_of(whole, DETECTION[dialect])
        return put(session, DETECTION[dialect], {"type": "server_vad"} if detection is ABSENT else detection)

    def _go_on(self) -> None:
        """The current agent speaks next, and is told why."""
        context, self._context = self._context, ""
        content = [{"type": "input_text", "text": context}]
        item = {
            "id": f"broker{uuid7().replace('-', '')[-24:]}",
            "type": "message",
            "role": "system",
            "content": content,
        }
        event_id = f"{_CONTEXT_ID}{self._requests}"
        self._hooks.send({"type": "conversation.item.create", "event_id": event_id, "item": item})
        self._hooks.want()

    def _set_agent(self, agent: Agent) -> None:
        self.agent = agent
        self.count += 1
        self._turns.agent_id = agent.id
        self._hooks.changed(agent)
        if self._context:
            self._go_on()
