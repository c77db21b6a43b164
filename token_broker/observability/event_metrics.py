"""Metrics of events, counted as they happen, in a registry of their own.

Breakers, relay and memory count for themselves: `api/metrics.py` reads their status at each scrape. Label values are
few and our own: templates of routes, strategies, outcomes; never a path, a principal or a session.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

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
                self._attempts.of(strategy, event.outcome).inc()
                self._attempt_seconds.of(strategy).observe(event.duration_ms / 1000)
                self._mint_requests.of(strategy).inc(event.tries)
            case CredentialIssued():
                self._credentials.of(event.strategy, event.holder).inc()
            case TalkEnded():
                self._talk_seconds.of().observe(event.duration_s)
            case _:  # a placed call is seen in its attempts and its HTTP request
                pass

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
