"""What the status routes answer. `/status` serialises these models, OpenAPI shows them, metrics read their parts."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from strategies.health import BreakerStatus
from strategies.voice_live_webrtc import WebRtcStatus
from token_broker.memory.memory_status import MemoryStatus
from token_broker.relay.counters import RelayStatus

__all__ = [
    "AgentVoice",
    "LiveTimes",
    "PlanLevel",
    "Readiness",
    "ResourceState",
    "ServiceLevel",
    "Status",
    "StrategyStatus",
    "TalkLevel",
]


class AgentVoice(BaseModel):
    """An agent as `/status` lists it."""

    name: str = Field(description="What people call it.")
    voice: str = Field(description="Its voice: Voice Live's, or GPT-Live's where it talks by that.")


@dataclass(frozen=True, slots=True)
class StrategyStatus(BreakerStatus):
    """A strategy's breaker at one resource; `do` is what an operator can do about it. The proxy is bound to none."""

    do: str | None
    resource: str | None


class PlanLevel(BaseModel):
    """Usable plans over the requests that were owed one. A poor plan is not usable."""

    requests: int
    usable: int
    ratio: float | None


class LiveTimes(BaseModel):
    """Percentiles of the last 512 talks."""

    p50: float | None
    p95: float | None


class TalkLevel(BaseModel):
    """Talks that came about, over those that were asked for, where the broker sees them. Each counts once.

    `left` are those whose client left before they were live; they are not among the others.
    """

    asked: int
    live: int
    left: int
    ratio: float | None
    time_to_live_ms: LiveTimes


class ServiceLevel(BaseModel):
    """Usable plans over the requests that were owed one, since the process began."""

    aim: float
    requests: int
    usable_plans: int
    degraded_plans: int
    ratio: float | None
    plans: PlanLevel
    talks: TalkLevel


class ResourceState(BaseModel):
    """One Azure resource, as the pool sees it."""

    name: str
    zone: str
    priority: int
    weight: int
    enabled: bool = Field(description="False while `token-broker resources disable` keeps new talks away.")
    health: str = Field(description="`good`, `failing`, `slow` or `recovering`.")
    why: str | None
    retry_in_s: float | None
    load: dict[str, float] = Field(description="The share of each known quota that is used.")


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
    resources: list[ResourceState] = Field([], description="The Azure resources, in the order of the file.")
    agent_reports: dict[str, list[str]] = Field(
        {}, description="What a start warns of about its agents: settings that a dialect lacks, tools without a runner."
    )
    clock_skew_s: float | None = Field(None, description="Our clock less Azure's, at the last mint.")
    voice_live_webrtc: list[WebRtcStatus] = Field(
        [], description="Which resources have Voice Live by WebRTC: `available`, `missing`, `unknown` or `off`."
    )


class Readiness(BaseModel):
    """The state of the process."""

    status: Literal["ok", "ready"]
