"""What a strategy is asked for, `SessionSpec`, and what it grants.

This module imports little of ours, since nearly every other one imports it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import SecretStr

from strategies.resources import Resource
from strategies.session_model.agent_settings import AgentSettings, AnyDialect, Dialect, Voice

__all__ = [
    "Attempt",
    "Dialect",
    "EphemeralGrant",
    "Grant",
    "ProxyGrant",
    "SessionSpec",
    "SignallingGrant",
    "SpecSupplier",
    "own_limit_s",
]

_LAST_WORD_S = 0.05


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """One talk as Azure is asked for it. `session_model/session_fields.py` makes each body of it."""

    model: str  # the deployment's name
    model_family: str = field(default="", kw_only=True)  # what it is, where its name does not say
    instructions: str = field(repr=False)
    voices: Mapping[AnyDialect, Voice]
    modalities: tuple[str, ...] = ("audio", "text")
    transcription_model: str = "gpt-4o-mini-transcribe"  # a deployment's name, and for GA alone
    settings: AgentSettings = field(default_factory=AgentSettings)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)  # may hold an MCP server's credentials
    ttl_s: int = 60
    voice_live_version: str = ""  # Voice Live's api-version; empty where it isn't known
    holds_answers: bool = False  # the broker asks for them: sockets only


SpecSupplier = Callable[[Resource], Awaitable[SessionSpec]]
"""Gives a session as one resource is asked for it: the deployments' names are the resource's."""


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
    resource: str = ""  # the name of the resource that minted
    session_id: str | None = None  # Azure's, of the first session that is opened with the token
    left_out: tuple[str, ...] = ()  # fields of the session that Azure has refused, as it writes their paths


@dataclass(frozen=True, slots=True)
class ProxyGrant:
    """Nothing was minted: the broker's WebSocket proxy carries the talk."""

    strategy: str = "websocket_proxy"
    resource: str = ""  # chosen when the talk connects


@dataclass(frozen=True, slots=True)
class SignallingGrant:
    """Nothing was minted: media goes straight to Azure, and the broker's WebSocket carries signalling and events."""

    strategy: str = "voice_live_webrtc"
    resource: str = ""  # which would be asked now; chosen anew when the talk connects


Grant = EphemeralGrant | ProxyGrant | SignallingGrant


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one strategy did in one request.

    `outcome` is `minted`, `granted` (where nothing is minted), `skipped`, `undone` (another resource was faster) or a
    `MintError.outcome`. `why` is the broker's own sentence. `tries` counts HTTP attempts.
    """

    strategy: str
    outcome: str
    duration_ms: float
    why: str = ""
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    tries: int = 0
    resource: str = ""


def own_limit_s(limit_s: float) -> float:
    """How long an attempt that may take `limit_s` waits by itself, in seconds: up to 50 ms less, at most a twentieth.

    So it can say what it waited for in vain, on a busy broker as well, before it is ended from outside.
    """
    return limit_s - min(_LAST_WORD_S, limit_s / 20)
