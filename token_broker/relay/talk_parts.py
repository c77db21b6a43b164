"""What all talks of a process share, whichever way they take."""

from collections.abc import Callable
from dataclasses import dataclass

from token_broker.memory.types import Recall, TurnIngest
from token_broker.observability.events import Observer, TurnAnswered, null_observer
from token_broker.relay.answers.turn_clock import TurnLatency
from token_broker.relay.azure.connector import UpstreamConnector
from token_broker.relay.counters import RelayCounters
from token_broker.sessions.agents import AgentRegistry
from token_broker.settings import Settings
from token_broker.tools.guardrail import GuardrailClient
from token_broker.tools.runner import ToolRunner

__all__ = ["TalkParts"]


@dataclass(frozen=True, slots=True)
class TalkParts:
    """`redact` removes the secrets that are known now from a text; `tools` runs agents' tools."""

    settings: Settings
    agents: AgentRegistry
    connector: UpstreamConnector
    ingest: TurnIngest
    recall: Recall
    counters: RelayCounters
    redact: Callable[[str], str]
    tools: ToolRunner | None = None
    guardrail: GuardrailClient | None = None
    observe: Observer = null_observer

    def note_answer(self, turn: TurnLatency, *, transport: str, agent_id: str, resource: str) -> float:
        """Counts how long a user waited for an answer; returns it in milliseconds."""
        latency_ms = round(turn.wait_s * 1000, 1)
        self.counters.turn_latencies_ms.append(latency_ms)
        self.observe(TurnAnswered(transport, agent_id, resource, turn.wait_s))
        return latency_ms
