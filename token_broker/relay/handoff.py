"""Another agent in the middle of a talk: told to the same upstream, or, for another voice, moved to a new one.

A voice cannot change once it has spoken (docs/azure.md §4.2), so another voice means another conversation at Azure,
which gets the last turns as its history. Either way what was recalled for the talk goes along.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from token_broker.relay.azure.connector import NoUpstreamError, SpecSupplier, Upstream, UpstreamConnector
from token_broker.relay.dialects.broker_events import (
    OWN_EVENT_IDS,
    broker_error,
    broker_event,
    history_item,
    new_agent_update,
)
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.security.rate_limits import RateLimit
from token_broker.sessions.agents import Agent, AgentRegistry

__all__ = ["AgentHandoff"]

_CHANGES_PER_MINUTE = 30  # each may be a new connection to Azure, with the whole history
_CHANGES_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class _Told:
    """A change of agent that Azure has still to confirm."""

    agent: Agent
    event_id: str


class AgentHandoff:
    """Who speaks in one talk, and how that changes.

    `supply` gives an agent's spec with what was recalled; `start` runs a change as one of the talk's tasks; `move`
    puts a new upstream in the place of the talk's own.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        agents: AgentRegistry,
        connector: UpstreamConnector,
        turns: TurnRecorder,
        supply: Callable[[Agent], SpecSupplier],
        start: Callable[[Coroutine[Any, Any, None], str], None],
        move: Callable[[Upstream], None],
    ) -> None:
        self.agent = agent
        self.count = 0
        self._agents = agents
        self._connector = connector
        self._turns = turns
        self._supply = supply
        self._start = start
        self._move = move
        self._rate = RateLimit(_CHANGES_PER_MINUTE, burst=_CHANGES_AT_ONCE)
        self._asked = 0
        self._busy = False
        self._told: _Told | None = None
        self._own_items: frozenset[str] = frozenset()  # of this upstream's conversation

    def ask(self, event: Mapping[str, Any], upstream: Upstream) -> None:
        """Takes the client's `broker.agent.switch`; what becomes of it is told in the talk's own events."""
        agent_id = event.get("agent_id")
        agent = self._agents.get(agent_id) if isinstance(agent_id, str) else None
        if agent is None:
            known = ", ".join(self._agents.ids)
            upstream.socket.put(broker_error("unknown_agent", f"there is no such agent; the known ones are {known}"))
            return
        if self._busy:
            upstream.socket.put(broker_error("switch_pending", "another change of agent is under way", retryable=True))
            return
        if self._rate.take("") is not None:
            message = "too many changes of agent: wait a few seconds"
            upstream.socket.put(broker_error("too_many_switches", message, retryable=True))
            return
        self._busy = True
        self._asked += 1
        dialect = upstream.route.dialect
        same_voice = agent.voices[dialect] == self.agent.voices[dialect]
        work = self._tell(agent, upstream) if same_voice else self._replace(agent, upstream)
        self._start(work, "talk-switch")

    def confirmed(self, upstream: Upstream) -> None:
        """Azure took a session: the agent's, where one was told."""
        if self._told is not None:
            self._speak_as(self._told.agent)
            self._told = None
            self._busy = False
            upstream.socket.put(broker_event("broker.agent.switched", agent_id=self.agent.id))

    def owns_error(self, event: Mapping[str, Any], upstream: Upstream) -> bool:
        """Whether Azure's error is about an event of the broker's own, and so is not the client's affair."""
        error = event.get("error")
        event_id = error.get("event_id") if isinstance(error, dict) else None
        if not isinstance(event_id, str) or not event_id.startswith(OWN_EVENT_IDS):
            return False
        if self._told is not None and self._told.event_id == event_id:
            self._told = None
            self._busy = False
            upstream.socket.put(broker_error("switch_failed", "Azure refused the change of agent", retryable=True))
        return True

    def owns_item(self, event: Mapping[str, Any]) -> bool:
        """Whether the event is about an item that was put there as history."""
        item = event.get("item")
        return isinstance(item, dict) and item.get("id") in self._own_items

    async def _tell(self, agent: Agent, upstream: Upstream) -> None:
        spec = await self._supply(agent)()
        self._told = _Told(agent, f"{OWN_EVENT_IDS}switch_{self._asked}")
        upstream.socket.send(new_agent_update(spec, upstream.route.dialect, self._told.event_id))

    async def _replace(self, agent: Agent, old: Upstream) -> None:
        """The old upstream goes on until the new one is ready, and stays where none can be had."""
        try:
            new = await self._connector.connect(self._supply(agent), only=old.route.name)
            self._turns.flush()
            own_items: list[str] = []
            for number, turn in enumerate(self._turns.history):
                item_id, event = history_item(turn.role, turn.content, new.route.dialect, number)
                own_items.append(item_id)
                self._turns.assembler.ignore(item_id)
                new.socket.send(event)
            new.first.insert(0, broker_event("broker.agent.switched", agent_id=agent.id))
            self._speak_as(agent)
            self._own_items = frozenset(own_items)
            self._move(new)
        except NoUpstreamError:
            old.socket.put(broker_error("switch_failed", "Azure took no talk with the other voice", retryable=True))
            return
        finally:
            self._busy = False
        await old.socket.aclose()

    def _speak_as(self, agent: Agent) -> None:
        self.agent = agent
        self.count += 1
        self._turns.agent_id = agent.id
