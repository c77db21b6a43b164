"""Traces by OpenTelemetry, as an extra: spans are made from events, after the fact.

Off, and nothing of it imported, unless OTEL_EXPORTER_OTLP_ENDPOINT or BROKER_OTEL=on asks for it and the extra `otel`
is installed. The one place that knows OpenTelemetry. Names follow its GenAI conventions where they fit; the SDK's own
OTEL_* variables (sampler, resource, headers) hold as well.
"""

import asyncio
import contextlib
import importlib.util
import threading
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

import structlog

from strategies.base import Attempt
from strategies.health import percentiles
from token_broker import __version__
from token_broker.observability.events import (
    CallPlaced,
    ChainRequestEnded,
    Event,
    Observer,
    TalkEnded,
    TokenRequestEnded,
    TraceContext,
)
from token_broker.settings import Settings

__all__ = ["SpanMaker", "open_tracing"]

log = structlog.get_logger("token_broker.observability.tracing")

_EXPORT_TIMEOUT_S = 5
_FLUSH_S = 3
_NS = 1_000_000_000
_PROVIDER = {"gen_ai.provider.name": "azure.ai.openai"}


@contextlib.asynccontextmanager
async def open_tracing(settings: Settings) -> AsyncIterator[Observer | None]:
    """The observer that sends spans while the block runs; None where traces are off or the extra is missing."""
    if not settings.wants_traces:
        yield None
        return
    if importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.sdk") is None:
        log.warning("tracing_unavailable", do="install the extra `otel`, or set BROKER_OTEL=off")
        yield None
        return
    provider = _provider(settings)
    try:
        yield SpanMaker(provider.get_tracer("token_broker", __version__))
    finally:
        await _shut_down(provider)


def _provider(settings: Settings) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    endpoint = None if settings.otlp_endpoint is None else f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
    ours = Resource({"service.name": "voice-token-broker", "service.version": __version__})
    named = OTELResourceDetector().detect()  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
    provider = TracerProvider(resource=Resource.create().merge(ours).merge(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)))
    return provider


async def _shut_down(provider: Any) -> None:
    """Sends the remaining spans within 3 s: a collector that hangs must not delay the shutdown."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def flush() -> None:
        provider.shutdown()
        with contextlib.suppress(RuntimeError):  # the loop has gone on without us
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=flush, name="traces-flush", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_S):
            await done.wait()


class SpanMaker:
    """An observer that makes spans with `tracer`, an `opentelemetry.trace.Tracer`.

    A token request is a span, and so is an SDP offer; each strategy that was asked, and Azure's answer to the offer, is
    a span beneath it. A proxied talk is a span of its own, joined by `gen_ai.conversation.id`.
    """

    def __init__(self, tracer: Any, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._clock_ns = clock_ns
        self._server, self._client = SpanKind.SERVER, SpanKind.CLIENT
        self._nowhere = Context()
        self._beneath = set_span_in_context
        self._extract = TraceContextTextMapPropagator().extract
        self._error: Callable[[str], Any] = lambda why: Status(StatusCode.ERROR, why)

    def __call__(self, event: Event, /) -> None:
        match event:
            case TokenRequestEnded():
                span, _, end_ns = self._request("/realtime/token", event)
                span.set_attribute("token_broker.result", event.result)
                span.end(end_time=end_ns)
            case CallPlaced():
                self._on_call(event)
            case TalkEnded():
                self._on_talk(event)
            case _:
                pass

    def _on_call(self, event: CallPlaced) -> None:
        span, start_ns, end_ns = self._request(event.route, event)
        if event.offer_s is not None:
            began_ns, ended_ns = (start_ns + _ns(seconds) for seconds in event.offer_s)
            offer = self._tracer.start_span(
                f"offer_call {event.model}",
                context=self._beneath(span),
                kind=self._client,
                start_time=began_ns,
                attributes={**_PROVIDER, "gen_ai.operation.name": "offer_call", "gen_ai.request.model": event.model},
            )
            if event.code is not None:
                offer.set_attribute("error.type", event.code)
                offer.set_status(self._error(event.code))
            offer.end(end_time=ended_ns)
        span.end(end_time=end_ns)

    def _request(self, route: str, event: ChainRequestEnded) -> tuple[Any, int, int]:
        """The request's span, with its attempts beneath it, still open; its start and its end."""
        end_ns = self._clock_ns()
        start_ns = end_ns - _ns(event.duration_s)
        span = self._tracer.start_span(
            f"POST {route}",
            context=self._parent(event.trace),
            kind=self._server,
            start_time=start_ns,
            attributes=_known(
                {
                    "http.request.method": "POST",
                    "http.route": route,
                    "http.response.status_code": event.status,
                    "gen_ai.request.model": event.model,
                    "gen_ai.agent.id": event.agent_id,
                    "gen_ai.conversation.id": event.session_id,
                    "token_broker.strategy": event.strategy,
                    "token_broker.correlation_id": event.correlation_id,
                    "error.type": event.code,
                }
            ),
        )
        at_ns = start_ns + _ns(event.chain_began_s)
        for attempt in event.attempts:
            took_ns = _ns(attempt.duration_ms / 1000)
            if attempt.outcome == "undone":  # it ran beside the one that won, and ended with it
                self._attempt(attempt, span, event.model, at_ns - took_ns)
                continue
            self._attempt(attempt, span, event.model, at_ns)
            at_ns += took_ns
        if event.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.set_status(self._error(event.code or ""))
        return span, start_ns, end_ns

    def _attempt(self, attempt: Attempt, parent: Any, model: str, at_ns: int) -> None:
        if not attempt.tries:
            noted = {
                "token_broker.resource": attempt.resource,
                "token_broker.strategy": attempt.strategy,
                "token_broker.why": attempt.why,
            }
            parent.add_event(f"strategy.{attempt.outcome}", noted, timestamp=at_ns)
            return
        failed = attempt.outcome not in {"minted", "undone"}
        span = self._tracer.start_span(
            f"create_realtime_session {model}",
            context=self._beneath(parent),
            kind=self._client,
            start_time=at_ns,
            attributes=_known(
                {
                    **_PROVIDER,
                    "gen_ai.operation.name": "create_realtime_session",
                    "gen_ai.request.model": model,
                    "token_broker.resource": attempt.resource,
                    "token_broker.strategy": attempt.strategy,
                    "token_broker.outcome": attempt.outcome,
                    "token_broker.tries": attempt.tries,
                    "http.response.status_code": attempt.status,
                    "azure.service.request.id": attempt.request_id,
                    "error.type": attempt.outcome if failed else None,
                }
            ),
        )
        if failed:
            span.set_status(self._error(attempt.why))
        span.end(end_time=at_ns + _ns(attempt.duration_ms / 1000))

    def _on_talk(self, event: TalkEnded) -> None:
        end_ns = self._clock_ns()
        span = self._tracer.start_span(
            f"invoke_agent {event.agent_id}",
            context=self._parent(event.trace),
            kind=self._client,
            start_time=end_ns - _ns(event.duration_s),
            attributes=_known(
                {
                    **_PROVIDER,
                    "gen_ai.operation.name": "invoke_agent",
                    "gen_ai.output.type": "speech",
                    "gen_ai.request.model": event.model,
                    "gen_ai.agent.id": event.agent_id,
                    "gen_ai.conversation.id": event.session_id,
                    "gen_ai.usage.input_tokens": event.input_tokens,
                    "gen_ai.usage.output_tokens": event.output_tokens,
                    "token_broker.turns": event.turns,
                    "token_broker.close_code": event.code,
                    "token_broker.correlation_id": event.correlation_id,
                }
            ),
        )
        if event.turn_latencies_ms:
            span.set_attribute("token_broker.turn_latencies_ms", event.turn_latencies_ms)
            span.set_attribute("token_broker.turn_latency_p95_ms", percentiles(event.turn_latencies_ms).p95)
        if event.code != 1000:  # noqa: PLR2004  # RFC 6455: done
            span.set_attribute("error.type", str(event.code))
            span.set_status(self._error(event.reason))
        span.end(end_time=end_ns)

    def _parent(self, trace: TraceContext | None) -> Any:
        """The caller's span, if its header can be read; without one a new trace begins."""
        if trace is None:
            return self._nowhere
        return self._extract({"traceparent": trace.traceparent, "tracestate": trace.tracestate}, context=self._nowhere)


def _ns(seconds: float) -> int:
    return round(seconds * _NS)


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
