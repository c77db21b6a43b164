"""What a strategy is asked for and what it grants: `SessionSpec` and `Grant`.

This module imports none of ours, since nearly every other one imports it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pydantic import SecretStr

__all__ = ["Attempt", "Dialect", "EphemeralGrant", "Grant", "ProxyGrant", "SessionSpec", "TurnDetection"]

# Whose events and session shape a connection speaks (docs/azure.md §4.1): GA's, or the preview's, which Voice Live
# speaks as well. Plans and `broker.ready` show this value.
Dialect = Literal["ga", "preview"]


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """Server VAD: the loudness of speech (0 to 1), how much before it is kept, and the silence that ends it."""

    threshold: float = 0.6
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 800


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """One talk as Azure is asked for it. Both request bodies and both dialects are made from it."""

    model: str  # the deployment's name
    instructions: str = field(repr=False)
    voices: Mapping[Dialect, str]
    modalities: tuple[str, ...] = ("audio", "text")
    transcription_model: str = "gpt-4o-mini-transcribe"  # a deployment's name, and for GA alone
    turn_detection: TurnDetection = field(default_factory=TurnDetection)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)  # may hold an MCP server's credentials
    ttl_s: int = 60


@dataclass(frozen=True, slots=True)
class EphemeralGrant:
    """Azure minted: the browser may connect with `token`.

    `expires_in_s` is the lifetime left at `received_at_s` of our monotonic clock, reckoned by the `Date` of Azure's
    answer. `clock_skew_s` is our wall clock minus Azure's; None where the answer had no usable `Date`.
    """

    strategy: str
    token: SecretStr
    expires_at: datetime  # UTC
    expires_in_s: float
    received_at_s: float
    endpoint: str  # the base URL that minted; media goes there
    dialect: Dialect
    voice: str
    clock_skew_s: float | None = None


@dataclass(frozen=True, slots=True)
class ProxyGrant:
    """Nothing was minted: the broker's WebSocket proxy carries the talk."""

    strategy: str = "websocket_proxy"


Grant = EphemeralGrant | ProxyGrant


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one strategy did in one request.

    `outcome` is `minted`, `granted` (by the proxy), `skipped` or a `MintError.outcome`. `why` is the broker's own
    sentence. `tries` counts HTTP attempts.
    """

    strategy: str
    outcome: str
    duration_ms: float
    why: str = ""
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    tries: int = 0
