"""Events as values, and the observers that get them.

Metrics and traces observe the same few events. An observer is called after the fact, never waits and never raises. No
event carries a secret or a principal.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from strategies.base import Attempt

__all__ = [
    "CallPlaced",
    "ChainRequestEnded",
    "CredentialHolder",
    "CredentialIssued",
    "Event",
    "Observer",
    "RequestAnswered",
    "TalkEnded",
    "TokenRequestEnded",
    "TokenResult",
    "TraceContext",
    "null_observer",
    "observe_with",
]

TokenResult = Literal["minted", "degraded", "refused", "failed"]
"""How a token request ended: a plan with an ephemeral token, one with the proxy alone, a 4xx, a 5xx."""


CredentialHolder = Literal["browser", "broker"]
"""Who receives a credential: the browser, or the broker on its behalf."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C trace context as the caller sent it, unread: `traceparent` and `tracestate`."""

    traceparent: str
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class RequestAnswered:
    """An HTTP request has its answer. `route` is the path's template, so that its values are few."""

    method: str
    route: str
    status: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class CredentialIssued:
    """A credential is about to be released to its holder; the audit has its line."""

    agent_id: str
    strategy: str
    holder: CredentialHolder


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRequestEnded:
    """A request that asked the chain of strategies has its answer.

    `attempts` were made one after another; the first began `chain_began_s` after the request. `code` is the problem's,
    where there was one.
    """

    status: int
    duration_s: float
    correlation_id: str
    model: str
    agent_id: str | None = None
    session_id: str | None = None
    strategy: str | None = None
    code: str | None = None
    chain_began_s: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    trace: TraceContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequestEnded(ChainRequestEnded):
    """A token request has its answer. `clock_skew_s` is our clock less Azure's, where a token was minted."""

    result: TokenResult
    clock_skew_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlaced(ChainRequestEnded):
    """An SDP offer, good enough to be taken to Azure, has its answer; it went `offer_s` (began, ended) after it came.

    `route` is the path's template.
    """

    route: str
    offer_s: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class TalkEnded:
    """A proxied talk has ended; `code` is its close code."""

    session_id: str
    agent_id: str
    model: str
    code: int
    reason: str
    duration_s: float
    correlation_id: str
    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    trace: TraceContext | None = None


Event = RequestAnswered | CredentialIssued | TokenRequestEnded | CallPlaced | Attempt | TalkEnded
"""An `Attempt` is what one strategy did within one request."""


class Observer(Protocol):
    """Gets events."""

    def __call__(self, event: Event, /) -> None: ...


def null_observer(event: Event, /) -> None:
    """Ignores the event."""


def observe_with(*observers: Observer | None) -> Observer:
    """One observer that calls all of these, in their order; None is skipped."""
    present = [observer for observer in observers if observer is not None]
    if len(present) == 1:
        return present[0]

    def tell(event: Event, /) -> None:
        for observer in present:
            observer(event)

    return tell
