"""Events as values, the observers that get them, and the metrics that count them as they happen.

Metrics and traces observe the same few events. An observer is called after the fact, never waits and never raises. No
event carries a secret or a principal.

Breakers, relay and memory count for themselves: `api/metrics.py` reads their status at each scrape. Label values are
few and our own: templates of routes, strategies, outcomes; never a path, a principal or a session.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, PlatformCollector, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from strategies.base import Attempt

__all__ = [
    "CallPlaced",
    "ChainRequestEnded",
    "CredentialHolder",
    "CredentialIssued",
    "Event",
    "FailureReason",
    "GuardrailAsked",
    "GuardrailOutcome",
    "Metrics",
    "Observer",
    "PageReported",
    "PageTransport",
    "PlanCounters",
    "RequestAnswered",
    "TalkEnded",
    "TalkLive",
    "TokenRequestEnded",
    "TokenResult",
    "ToolOutcome",
    "ToolRan",
    "TraceContext",
    "TurnAnswered",
    "null_observer",
    "observe_with",
]

M = TypeVar("M", bound=MetricWrapperBase)

TokenResult = Literal["minted", "signalled", "degraded", "poor", "refused", "failed"]
"""How a token request ended: a plan with an ephemeral token, one with WebRTC that the broker signals, one with the
proxy alone, one with the proxy alone while every upstream of it is known to be down, a 4xx, a 5xx."""


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
    resource: str = ""  # that minted it; empty for the broker's own


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
    """A token request has its answer. `clock_skew_s` is our clock less Azure's, at the `resource` that minted."""

    result: TokenResult
    clock_skew_s: float | None = None
    resource: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlaced(ChainRequestEnded):
    """An SDP offer, good enough to be taken to Azure, has its answer; it went `offer_s` (began, ended) after it came.

    `route` is the path's template.
    """

    route: str
    offer_s: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class TalkLive:
    """A talk that was asked for has come about at a resource; it took `duration_s`, moves and fallbacks included."""

    duration_s: float
    resource: str


@dataclass(frozen=True, slots=True)
class TalkEnded:
    """A proxied talk has ended; `code` is its close code. Tokens are None where they are unknown."""

    session_id: str
    agent_id: str
    model: str
    code: int
    reason: str
    duration_s: float
    correlation_id: str
    turns: int = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    turn_latencies_ms: tuple[float, ...] = ()  # of its latest turns, in their order
    trace: TraceContext | None = None


@dataclass(frozen=True, slots=True)
class TurnAnswered:
    """The first sound of an answer has come, so long after the user stopped speaking. `transport` is the client's."""

    transport: str
    agent_id: str
    resource: str
    wait_s: float


PageTransport = Literal["webrtc", "webrtc_relay", "webrtc_websocket", "websocket", "websocket_proxy"]
"""The transports of a plan."""
FailureReason = Literal[
    "sdp_refused", "sdp_timeout", "ice_failed", "ice_timeout", "channel_closed", "token_expired", "token_not_ephemeral",
    "ticket_spent", "socket_closed", "socket_timeout", "azure_dropped", "network_lost", "not_reading", "draining",
    "refused", "other",
]  # fmt: skip
"""Why a transport failed, as the browser client names it."""


@dataclass(frozen=True, slots=True)
class PageReported:
    """A page has told what it measured of its talk since the last time. `packets_lost` are those that it missed."""

    transport: PageTransport
    live_after_s: float | None = None
    turns_s: tuple[float, ...] = ()
    rtt_s: float | None = None
    jitter_s: float | None = None
    packets_lost: int = 0
    failures: tuple[tuple[PageTransport, FailureReason], ...] = ()


ToolOutcome = Literal[
    "done", "repeated", "error", "timeout", "unreachable", "too_large", "unknown", "wrong_arguments", "no_tool",
    "no_store", "busy", "cancelled",
]  # fmt: skip
"""What came of a tool's call. `repeated`: it was made before, and its output is told again; `unknown`: something was
sent, and nobody knows what it did; `no_store`: it could not be claimed, so it was not made."""


@dataclass(frozen=True, slots=True)
class ToolRan:
    """A call of a tool has its output. `tool` is a configured name, or `unknown`."""

    agent_id: str
    tool: str
    outcome: ToolOutcome
    duration_s: float


GuardrailOutcome = Literal["allow", "replace", "refuse", "failed"]
"""What a guardrail said of a user's words; `failed`: it didn't."""


@dataclass(frozen=True, slots=True)
class GuardrailAsked:
    """A guardrail has been asked about a user's words."""

    agent_id: str
    outcome: GuardrailOutcome
    duration_s: float


Event = (
    RequestAnswered
    | CredentialIssued
    | TokenRequestEnded
    | CallPlaced
    | Attempt
    | TalkLive
    | TalkEnded
    | TurnAnswered
    | PageReported
    | ToolRan
    | GuardrailAsked
)
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


_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 6.25, 10)  # 6.25: the budget and its slack
_LIVE_BUCKETS_S = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 10, 30)
_REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TALK_BUCKETS_S = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_TOOL_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
_TURN_BUCKETS_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 5, 8, 15, 30)
_MEDIA_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2)
_GUARDRAIL_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Registry(CollectorRegistry):
    """Without the `_created` series: half as many lines, and no query of ours asks for them.

    `expected` shows series at zero. It is called at the first scrape, since that takes a fifth of a broker's start.
    """

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[Callable[[], None]] = []

    def collect(self) -> Iterator[Metric]:
        while self.expected:
            self.expected.pop()()
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class Metrics:
    """Counts events. `registry` is what `/metrics` shows; other collectors may join it.

    Children are bound once a set of label values, since `labels()` costs twice what counting does.
    """

    def __init__(self) -> None:
        self.registry = _Registry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._token_requests = _Children(
            self._counter("token_requests", "Token requests by how they ended.", "result"),
        )
        self._token_seconds = _Children(
            self._histogram("token_request_duration", "Token requests, whole.", _TOKEN_BUCKETS_S, "result")
        )
        self._attempts = _Children(
            self._counter(
                "mint_attempts", "Strategies asked for a token, by what came of it.", "resource", "strategy", "outcome"
            )
        )
        self._attempt_seconds = _Children(
            self._histogram(
                "mint_attempt_duration", "One strategy, retries included.", _TOKEN_BUCKETS_S, "resource", "strategy"
            )
        )
        self._mint_requests = _Children(
            self._counter(
                "mint_http_requests", "HTTP requests that strategies made, retries included.", "resource", "strategy"
            )
        )
        self._credentials = _Children(
            self._counter(
                "credentials_issued",
                "Credentials issued; each has its line in the audit.",
                "resource",
                "strategy",
                "holder",
            )
        )
        self._requests = _Children(
            self._counter("http_requests", "HTTP requests answered.", "method", "route", "status")
        )
        self._request_seconds = _Children(
            self._histogram(
                "http_request_duration",
                "HTTP requests, to the end of the answer.",
                _REQUEST_BUCKETS_S,
                "method",
                "route",
                "status_class",
            )
        )
        self._live_seconds = _Children(
            self._histogram(
                "talk_time_to_live",
                "From the first connection that was asked for to a live talk.",
                _LIVE_BUCKETS_S,
                "resource",
            )
        )
        self._talk_seconds = _Children(
            self._histogram("talk_duration", "Proxied talks, from admission to the end.", _TALK_BUCKETS_S)
        )
        self._turn_seconds = _Children(
            self._histogram(
                "turn_latency",
                "From the end of a user's speech to the first sound of the answer.",
                _TURN_BUCKETS_S,
                "transport",
                "agent",
                "resource",
            )
        )
        self._reported_live = _Children(
            self._histogram("reported_time_to_live", "Until a talk was live, by pages.", _LIVE_BUCKETS_S, "transport")
        )
        self._reported_turns = _Children(
            self._histogram("reported_turn_latency", "Waits for answers, by pages.", _TURN_BUCKETS_S, "transport")
        )
        self._reported_rtt = _Children(
            self._histogram("reported_round_trip", "Media's round trips, by pages.", _MEDIA_BUCKETS_S, "transport")
        )
        self._reported_jitter = _Children(
            self._histogram("reported_jitter", "Media's jitter, by pages.", _MEDIA_BUCKETS_S, "transport")
        )
        self._reported_losses = _Children(
            self._counter("reported_packets_lost", "Packets of media that pages missed.", "transport")
        )
        self._reported_failures = _Children(
            self._counter("reported_failures", "Transports that failed in pages, by why.", "transport", "reason")
        )
        self._tool_calls = _Children(
            self._counter("tool_calls", "Calls of tools, by what came of them.", "agent", "tool", "outcome")
        )
        self._tool_seconds = _Children(
            self._histogram("tool_call_duration", "Calls of tools, whole.", _TOOL_BUCKETS_S, "agent", "tool")
        )
        self._guardrail_checks = _Children(
            self._counter("guardrail_checks", "Guardrails asked, by what they said.", "agent", "outcome")
        )
        self._guardrail_seconds = _Children(
            self._histogram("guardrail_check_duration", "Guardrails asked, whole.", _GUARDRAIL_BUCKETS_S, "agent")
        )

    def __call__(self, event: Event, /) -> None:
        match event:
            case RequestAnswered(method=method, route=route, status=status):
                shown = method if method in _METHODS else "other"
                self._requests.of(shown, route, str(status)).inc()
                self._request_seconds.of(shown, route, f"{status // 100}xx").observe(event.duration_s)
            case TokenRequestEnded(result=result):
                self._token_requests.of(result).inc()
                self._token_seconds.of(result).observe(event.duration_s)
            case Attempt(strategy=strategy):
                self._attempts.of(event.resource, strategy, event.outcome).inc()
                self._attempt_seconds.of(event.resource, strategy).observe(event.duration_ms / 1000)
                self._mint_requests.of(event.resource, strategy).inc(event.tries)
            case CredentialIssued():
                self._credentials.of(event.resource, event.strategy, event.holder).inc()
            case TalkLive():
                self._live_seconds.of(event.resource).observe(event.duration_s)
            case TalkEnded():
                self._talk_seconds.of().observe(event.duration_s)
            case TurnAnswered(transport=transport):
                self._turn_seconds.of(transport, event.agent_id, event.resource).observe(event.wait_s)
            case PageReported():
                self._note_report(event)
            case ToolRan(agent_id=agent_id, tool=tool):
                self._tool_calls.of(agent_id, tool, event.outcome).inc()
                self._tool_seconds.of(agent_id, tool).observe(event.duration_s)
            case GuardrailAsked(agent_id=agent_id):
                self._guardrail_checks.of(agent_id, event.outcome).inc()
                self._guardrail_seconds.of(agent_id).observe(event.duration_s)
            case _:  # a placed call is seen in its attempts and its HTTP request
                pass

    def _note_report(self, report: PageReported) -> None:
        for metric, seconds in (
            (self._reported_live, report.live_after_s),
            (self._reported_rtt, report.rtt_s),
            (self._reported_jitter, report.jitter_s),
        ):
            if seconds is not None:
                metric.of(report.transport).observe(seconds)
        for turn_s in report.turns_s:
            self._reported_turns.of(report.transport).observe(turn_s)
        self._reported_losses.of(report.transport).inc(report.packets_lost)
        for transport, reason in report.failures:
            self._reported_failures.of(transport, reason).inc()

    def expect(self, strategies: Iterable[str], resources: Iterable[str], agents: Iterable[str] = ()) -> None:
        """Shows at zero what may happen, so that the first time it does is seen as an increase."""
        names = tuple(resources)

        def show() -> None:
            for result in get_args(TokenResult):
                self._token_requests.of(result)
                self._token_seconds.of(result)
            for strategy in strategies:
                if strategy in {"voice_live_webrtc", "websocket_proxy"}:  # they mint nothing, and have no resource
                    self._credentials.of("", strategy, "browser")
                    continue
                for resource in names:
                    self._credentials.of(resource, strategy, "browser")
                    self._attempts.of(resource, strategy, "minted")
                    self._attempt_seconds.of(resource, strategy)
                    self._mint_requests.of(resource, strategy)
            for resource in names:
                self._live_seconds.of(resource)
            for agent_id, resource in itertools.product(agents, names):
                self._turn_seconds.of("websocket_proxy", agent_id, resource)
            self._talk_seconds.of()
            for transport in get_args(PageTransport):
                for metric in (self._reported_live, self._reported_turns, self._reported_rtt, self._reported_jitter):
                    metric.of(transport)
                self._reported_losses.of(transport)
                for reason in get_args(FailureReason):
                    self._reported_failures.of(transport, reason)

        self.registry.expected.append(show)

    def expect_tools(self, tools: Iterable[tuple[str, str]], guarded: Iterable[str]) -> None:
        """The same for the tools, each with its agent's id, and for the agents that have a guardrail."""

        def show() -> None:
            for agent_id, tool in tools:
                self._tool_calls.of(agent_id, tool, "done")
                self._tool_seconds.of(agent_id, tool)
            for agent_id in guarded:
                self._guardrail_checks.of(agent_id, "failed")
                self._guardrail_seconds.of(agent_id)

        self.registry.expected.append(show)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="token_broker", registry=self.registry)

    def _histogram(self, name: str, text: str, buckets_s: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(
            name, text, labels, namespace="token_broker", unit="seconds", buckets=buckets_s, registry=self.registry
        )


@dataclass(slots=True)
class PlanCounters:
    """An observer that counts token requests for the service level, which is `usable` of `requests`.

    A 4xx is not counted: only callers who were owed a plan are, and whether they got one. A poor plan is not usable.
    """

    requests: int = 0
    usable: int = 0
    degraded: int = 0
    signalled: int = 0
    clock_skew_s: float | None = None  # our clock less Azure's, at the last mint
    clock_skew_at: dict[str, float] = field(default_factory=dict)  # the same, by resource

    def __call__(self, event: Event, /) -> None:
        if not isinstance(event, TokenRequestEnded):
            return
        if event.clock_skew_s is not None:
            self.clock_skew_s = self.clock_skew_at[event.resource] = event.clock_skew_s
        if event.result != "refused":
            self.requests += 1
            self.usable += event.result in {"minted", "signalled", "degraded"}
            self.degraded += event.result in {"degraded", "poor"}
            self.signalled += event.result == "signalled"


class _Children(Generic[M]):
    """A metric's children, each bound once."""

    def __init__(self, metric: M) -> None:
        self._metric = metric
        self._bound: dict[tuple[str, ...], M] = {}

    def of(self, *values: str) -> M:
        child = self._bound.get(values)
        if child is None:
            child = self._bound[values] = self._metric.labels(*values) if values else self._metric
        return child
