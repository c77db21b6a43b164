"""Metrics of what happens: counted as it does, in a registry of their own.

`Metrics` is an observer; what has its figures already (breakers, relay, memory) is read by `api/metrics.py` at each
scrape. Label values are few and ours: routes' templates, strategies, outcomes, never a path, a principal or a session.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, PlatformCollector, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from strategies.base import Attempt
from token_broker.observability.events import CredentialIssued, Event, RequestAnswered, TalkEnded, TokenRequestEnded

__all__ = ["Metrics", "PlanCounters"]

M = TypeVar("M", bound=MetricWrapperBase)

_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 6.25, 10)  # 6.25: the budget and its slack
_REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TALK_BUCKETS_S = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Registry(CollectorRegistry):
    """Without the `_created` series: half as many lines, and no query of ours asks for them."""

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class Metrics:
    """Counts events. `registry` is what `/metrics` shows; other collectors may join it.

    Children are bound once a set of label values, since `labels()` costs twice what counting does.
    """

    def __init__(self) -> None:
        self.registry: CollectorRegistry = _Registry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._token_requests = _Children(
            self._counter("token_requests", "Token requests by how they ended.", "result"),
        )
        self._token_seconds = _Children(
            self._histogram("token_request_duration", "Token requests, whole.", _TOKEN_BUCKETS_S, "result")
        )
        self._attempts = _Children(
            self._counter("mint_attempts", "Strategies asked for a token, by what came of it.", "strategy", "outcome")
        )
        self._attempt_seconds = _Children(
            self._histogram("mint_attempt_duration", "One strategy, retries included.", _TOKEN_BUCKETS_S, "strategy")
        )
        self._mint_requests = _Children(
            self._counter("mint_http_requests", "HTTP requests that strategies made, retries included.", "strategy")
        )
        self._credentials = _Children(
            self._counter(
                "credentials_issued", "Credentials issued; each has its line in the audit.", "strategy", "holder"
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
        self._talk_seconds = _Children(
            self._histogram("talk_duration", "Proxied talks, from admission to the end.", _TALK_BUCKETS_S)
        )
        self._on: dict[type[Any], Callable[[Any], None]] = {
            RequestAnswered: self._on_request,
            TokenRequestEnded: self._on_token_request,
            Attempt: self._on_attempt,
            CredentialIssued: self._on_credential,
            TalkEnded: self._on_talk,
        }

    def __call__(self, event: Event, /) -> None:
        if (count := self._on.get(type(event))) is not None:
            count(event)

    def expect(self, strategies: Iterable[str]) -> None:
        """Shows at zero what may happen, so that the first time it does is seen as an increase."""
        for result in ("minted", "degraded", "refused", "failed"):
            self._token_requests.of(result)
            self._token_seconds.of(result)
        for strategy in strategies:
            self._credentials.of(strategy, "browser")
            if strategy != "websocket_proxy":
                self._attempts.of(strategy, "minted")
                self._attempt_seconds.of(strategy)
                self._mint_requests.of(strategy)
        self._talk_seconds.of()

    def _on_request(self, event: RequestAnswered) -> None:
        method = event.method if event.method in _METHODS else "other"
        self._requests.of(method, event.route, str(event.status)).inc()
        self._request_seconds.of(method, event.route, f"{event.status // 100}xx").observe(event.duration_s)

    def _on_token_request(self, event: TokenRequestEnded) -> None:
        self._token_requests.of(event.result).inc()
        self._token_seconds.of(event.result).observe(event.duration_s)

    def _on_attempt(self, attempt: Attempt) -> None:
        self._attempts.of(attempt.strategy, attempt.outcome).inc()
        self._attempt_seconds.of(attempt.strategy).observe(attempt.duration_ms / 1000)
        self._mint_requests.of(attempt.strategy).inc(attempt.tries)

    def _on_credential(self, event: CredentialIssued) -> None:
        self._credentials.of(event.strategy, event.holder).inc()

    def _on_talk(self, event: TalkEnded) -> None:
        self._talk_seconds.of().observe(event.duration_s)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="token_broker", registry=self.registry)

    def _histogram(self, name: str, text: str, buckets_s: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(
            name, text, labels, namespace="token_broker", unit="seconds", buckets=buckets_s, registry=self.registry
        )


@dataclass(slots=True)
class PlanCounters:
    """An observer that counts token requests for the service level, which is `usable` of `requests`.

    A 4xx is not counted: only callers who were owed a plan are, and whether they got one.
    """

    requests: int = 0
    usable: int = 0
    degraded: int = 0
    clock_skew_s: float | None = None  # our clock less Azure's, at the last mint

    def __call__(self, event: Event, /) -> None:
        if not isinstance(event, TokenRequestEnded):
            return
        if event.clock_skew_s is not None:
            self.clock_skew_s = event.clock_skew_s
        if event.result != "refused":
            self.requests += 1
            self.usable += event.result in {"minted", "degraded"}
            self.degraded += event.result == "degraded"


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
