"""The handoff to another agent in the middle of a talk.

Where voice and deployment stay the same, the same upstream gets the new agent's session. A voice cannot change once it
has spoken (docs/azure.md §4.2), so another voice needs another upstream. So does an agent that is not permitted on the
resource of the talk. It gets the last turns, and what has no answer yet, as after a resume. Either way the new agent
knows what was recalled.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from strategies.resources import is_allowed
from token_broker.relay.azure.connector import NoUpstreamError, UpstreamConnection, UpstreamConnector
from token_broker.relay.dialects.broker_events import (
    OWN_EVENT_IDS,
    broker_error,
    broker_event,
    new_agent_update,
)
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.security.limits import RateLimit
from token_broker.server.close_codes import UPSTREAM_FAILED, Ending
from token_broker.sessions.agents import Agent, AgentRegistry
from token_broker.sessions.plans import SpecSupplier

__all__ = ["AgentHandoff"]

_HANDOFFS_PER_MINUTE = 30  # each may open a connection to Azure and send the whole history
_HANDOFFS_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class _Unconfirmed:
    """A handoff on the same upstream that Azure has not confirmed yet."""

    agent: Agent
    event_id: str


class AgentHandoff:
    """The current agent of one talk, and the handoff to another.

    `supply` gives an agent's spec with what was recalled; `start` runs a coroutine as one of the talk's tasks; `move`
    makes a new upstream with these settings the talk's own in place of another, and says whether it did; `tell` tells
    the client something.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        session_id: str,
        agents: AgentRegistry,
        connector: UpstreamConnector,
        turns: TurnRecorder,
        supply: Callable[[Agent], SpecSupplier],
        start: Callable[[Coroutine[Any, Any, None], str], None],
        move: Callable[[UpstreamConnection, UpstreamConnection, dict[str, Any]], bool],
        tell: Callable[[str], None],
    ) -> None:
        self.agent = agent
        self.count = 0
        self._session_id = session_id
        self._agents = agents
        self._connector = connector
        self._turns = turns
        self._supply = supply
        self._start = start
        self._move = move
        self._tell = tell
        self._rate = RateLimit(_HANDOFFS_PER_MINUTE, burst=_HANDOFFS_AT_ONCE)
        self._requests = 0
        self._pending = False
        self._unconfirmed: _Unconfirmed | None = None

    def request(self, event: Mapping[str, Any], upstream: UpstreamConnection) -> None:
        """Starts what the client's `broker.agent.switch` asks for. The client hears the outcome as a broker event."""
        agent_id = event.get("agent_id")
        agent = self._agents.get(agent_id) if isinstance(agent_id, str) else None
        if agent is None:
            known = ", ".join(self._agents)
            upstream.socket.put(broker_error("unknown_agent", f"there is no such agent; the known ones are {known}"))
            return
        if self._pending:
            upstream.socket.put(broker_error("switch_pending", "another change of agent is under way", retryable=True))
            return
        if self._rate.take("") is not None:
            message = "too many changes of agent: wait a few seconds"
            upstream.socket.put(broker_error("too_many_switches", message, retryable=True))
            return
        self._pending = True
        self._requests += 1
        self._start(self._hand_off(agent, upstream), "talk-handoff")

    @property
    def next_agent(self) -> Agent:
        """Whose session the next one is: where a handoff is not confirmed yet, the agent that it asks for."""
        return self.agent if self._unconfirmed is None else self._unconfirmed.agent

    def confirm(self, upstream: UpstreamConnection) -> None:
        """Completes an unconfirmed handoff: Azure has accepted a session."""
        if self._unconfirmed is not None:
            self._set_agent(self._unconfirmed.agent)
            self._unconfirmed = None
            self._pending = False
            upstream.socket.put(broker_event("broker.agent.switched", agent_id=self.agent.id))

    def owns_error(self, event: Mapping[str, Any], upstream: UpstreamConnection) -> bool:
        """Whether Azure's error is about an event that the broker sent, and so is not shown to the client."""
        error = event.get("error")
        event_id = error.get("event_id") if isinstance(error, dict) else None
        if not isinstance(event_id, str) or not event_id.startswith(OWN_EVENT_IDS):
            return False
        if self._unconfirmed is not None and self._unconfirmed.event_id == event_id:
            self._unconfirmed = None
            self._pending = False
            upstream.socket.put(broker_error("switch_failed", "Azure refused the change of agent", retryable=True))
        return True

    async def _hand_off(self, agent: Agent, old: UpstreamConnection) -> None:
        dialect = old.route.dialect
        wanted = agent.wanted(self._session_id, running=True)
        resource = self._connector.resource(old.resource)
        same_model = (agent.model or resource.model) == old.model
        if agent.voices[dialect] == self.agent.voices[dialect] and same_model and is_allowed(resource, wanted):
            spec = await self._supply(agent)(resource)
            self._unconfirmed = _Unconfirmed(agent, f"{OWN_EVENT_IDS}handoff_{self._requests}")
            old.socket.send(new_agent_update(spec, dialect, self._unconfirmed.event_id))
            return
        # The old upstream carries the talk until the new one is ready, and keeps it where none can be had.
        try:
            # The same route: the client has been told its dialect, and a compatible client cannot change it.
            new = await self._connector.connect(self._supply(agent), wanted=wanted, only=old.route.name)
            new.first.insert(0, broker_event("broker.agent.switched", agent_id=agent.id))
            if not self._move(old, new, dict(new.session)):  # the old one was lost meanwhile
                await new.socket.aclose()
                raise NoUpstreamError(Ending(UPSTREAM_FAILED, "the upstream was lost"))
            self._set_agent(agent)
        except NoUpstreamError:
            self._tell(broker_error("switch_failed", "Azure took no talk with the other voice", retryable=True))
            return
        finally:
            self._pending = False
        await old.socket.aclose()

    def _set_agent(self, agent: Agent) -> None:
        self.agent = agent
        self.count += 1
        self._turns.agent_id = agent.id
