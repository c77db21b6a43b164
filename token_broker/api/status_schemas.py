"""What the status routes answer. `/status` serialises these models, OpenAPI shows them, metrics read their parts."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from strategies.health import BreakerStatus
from token_broker.memory.memory_status import MemoryStatus
from token_broker.relay.counters import RelayStatus

__all__ = ["AgentVoice", "Readiness", "ServiceLevel", "Status", "StrategyStatus"]


class AgentVoice(BaseModel):
    """An agent as `/status` lists it."""

    voice: str = Field(description="Its Voice Live voice.")


@dataclass(frozen=True, slots=True)
class StrategyStatus(BreakerStatus):
    """A strategy's breaker; `do` is what an operator can do about it."""

    do: str | None


class ServiceLevel(BaseModel):
    """Usable plans over the requests that were owed one, since the process began."""

    aim: float
    requests: int
    usable_plans: int
    degraded_plans: int
    ratio: float | None


class Status(BaseModel):
    """The first five fields for everybody; the others as the operation says."""

    voicelive_configured: bool
    endpoint: str | None
    model: str
    active_sessions: int
    agents: dict[str, AgentVoice]
    strategies: list[StrategyStatus] = Field([], description="In the chain's order.")
    relay: RelayStatus | None = Field(
        None, description="Without `usage_by_principal` for clients that have not sent BROKER_METRICS_TOKEN."
    )
    outbox: MemoryStatus | None = None
    slo: ServiceLevel | None = None
    clock_skew_s: float | None = Field(None, description="Our clock less Azure's, at the last mint.")


class Readiness(BaseModel):
    """The state of the process."""

    status: Literal["ok", "ready"]
