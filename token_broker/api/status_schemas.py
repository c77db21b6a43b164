"""What `/status` answers, as OpenAPI shows it."""

from typing import Literal

from pydantic import BaseModel, Field

__all__ = ["Readiness", "Status"]


class AgentVoice(BaseModel):
    """An agent as `/status` lists it."""

    voice: str = Field(description="Its Voice Live voice.")


class Percentiles(BaseModel):
    """Of the last 512 attempts, in milliseconds; null while there was none."""

    p50: float | None
    p95: float | None
    p99: float | None


class BreakerStatus(BaseModel):
    """What a strategy's, or an upstream's, past says about asking it now."""

    name: str
    breaker: Literal["closed", "open", "half_open"]
    capability: Literal["unknown", "available", "missing", "misconfigured"]
    last_outcome: str | None
    last_status: int | None
    last_ago_s: float | None
    retry_in_s: float | None = Field(description="Seconds until it is asked again; null while it does not rest.")
    why: str | None
    attempts: int
    successes: int
    latency_ms: Percentiles
    do: str | None = Field(None, description="What an operator can do about it.")


class Directions(BaseModel):
    """A figure each way."""

    to_azure: int
    to_client: int


class TokenUsage(BaseModel):
    """Model tokens as Azure counts them."""

    responses: int
    total_tokens: int
    input_tokens: int
    output_tokens: int


class RelayFigures(BaseModel):
    """The proxy since the process began."""

    active: int
    open_or_relayed: int
    sessions: int
    ready: int
    handoffs: int
    closes: dict[str, int] = Field(description="By close code.")
    frames: Directions
    bytes: Directions
    turns: int
    turns_lost: int
    failed_transcriptions: int
    refused_events: int = Field(description="Events of clients that are not in the allowlist; each was told.")
    fields_left_out: int = Field(description="Fields that were taken out of clients' events.")
    calls_ended: int = Field(description="Calls hung up since their client changed the agent's session repeatedly.")
    usage: TokenUsage
    usage_by_agent: dict[str, TokenUsage]
    usage_by_principal: dict[str, TokenUsage] = Field(
        {}, description="Left out for whoever has not sent BROKER_METRICS_TOKEN."
    )
    upstreams: list[BreakerStatus]


class ServiceLevel(BaseModel):
    """Usable plans over the requests that were owed one, since the process began."""

    aim: float
    requests: int
    usable_plans: int
    degraded_plans: int
    ratio: float | None


class Outbox(BaseModel):
    """The memory's backlog; further figures stand beside these."""

    store: Literal["opening", "open", "away"]
    sink: Literal["zep", "local"]
    queued: int
    oldest_age_s: float
    delivered: int
    dead: int


class Status(BaseModel):
    """The first five for everybody; the rest as the operation says."""

    voicelive_configured: bool
    endpoint: str | None
    model: str
    active_sessions: int
    agents: dict[str, AgentVoice]
    strategies: list[BreakerStatus] = Field([], description="In the chain's order.")
    relay: RelayFigures | None = None
    outbox: Outbox | None = None
    slo: ServiceLevel | None = None
    clock_skew_s: float | None = Field(None, description="Our clock less Azure's, at the last mint.")


class Readiness(BaseModel):
    """That the process answers."""

    status: Literal["ok", "ready"]
