"""The seam: what a strategy is asked, and what it grants.

A `Strategy` turns a `SessionSpec` into a `Grant` or raises one of `strategies.errors`. Everything around it (retries,
breakers, the deadline) is the chain's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from pydantic import SecretStr

from strategies.endpoint import Target

__all__ = ["Attempt", "Dialect", "EphemeralGrant", "Grant", "ProxyGrant", "SessionSpec", "Strategy", "TurnDetection"]

# Which events and which session shape a connection speaks (docs/azure.md §4.1): GA's, or the preview's, which are
# Voice Live's too. The value is what plans and `broker.ready` show.
Dialect = Literal["ga", "preview"]


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """Server VAD: how loud speech is (0 to 1), how much before it is kept, how long a silence ends it."""

    threshold: float = 0.6
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 800


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """One talk as asked of Azure, on whatever path: all that both bodies and both dialects are made from."""

    model: str  # the deployment's name
    instructions: str = field(repr=False)
    voices: Mapping[Dialect, str]
    modalities: tuple[str, ...] = ("audio", "text")
    transcription_model: str = "gpt-4o-mini-transcribe"  # on GA, a deployment's name; elsewhere the model decides
    turn_detection: TurnDetection = field(default_factory=TurnDetection)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)  # an MCP server's credentials among them
    ttl_s: int = 60


@dataclass(frozen=True, slots=True)
class EphemeralGrant:
    """Azure minted: the browser may connect with `token`.

    `expires_in_s` is what was left when the answer came, by Azure's own clock (its `Date`), at `received_at_s` of
    our monotonic clock. `clock_skew_s` is our wall clock less Azure's; None where the answer had no usable `Date`.
    """

    strategy: str
    token: SecretStr
    expires_at: datetime  # UTC
    expires_in_s: float
    received_at_s: float
    endpoint: str  # the base that minted: media goes there
    dialect: Dialect
    voice: str
    clock_skew_s: float | None = None


@dataclass(frozen=True, slots=True)
class ProxyGrant:
    """Nothing was minted; our WebSocket proxy carries the talk."""

    strategy: str = "websocket_proxy"


Grant = EphemeralGrant | ProxyGrant


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one strategy did within one request.

    `outcome` is `minted`, `granted` (the proxy), `skipped`, `cancelled`, or a `MintError.outcome`; `why` is our own
    sentence; `tries` counts HTTP attempts, and is 0 where none was made.
    """

    strategy: str
    outcome: str
    duration_ms: float
    why: str = ""
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    tries: int = 0


class Strategy(Protocol):
    """One way to get a grant."""

    @property
    def name(self) -> str: ...

    @staticmethod
    def applies(target: Target) -> bool:
        """Whether this way exists for such an endpoint at all; decided once, at the start."""
        ...

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> Grant:
        """One attempt, at most `timeout_s` long. Raises `MintError`, and nothing else but cancellation."""
        ...
