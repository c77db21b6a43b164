"""`GET /metrics`: figures for Prometheus, for whoever `may_see_figures`."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from token_broker.api.status import may_see_figures
from token_broker.broker import Broker, broker_of
from token_broker.web.openapi_document import Operation, ResponseSpec
from token_broker.web.problems import Problem

__all__ = ["METRICS_OPERATIONS", "get_metrics"]


async def get_metrics(request: Request) -> Response:
    """All metrics, as text or, where it is asked for, as OpenMetrics. Problem 401 without the token."""
    broker = broker_of(request)
    if not may_see_figures(request, broker):
        raise Problem(401, "metrics_token_needed", _token_needed(broker))
    encode, media_type = _encoder(request.headers.get("accept", ""))
    body = encode(broker.metrics.registry)
    return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})


def _token_needed(broker: Broker) -> str:
    if broker.settings.metrics_token is not None:
        return "Send BROKER_METRICS_TOKEN as Authorization: Bearer."
    return (
        "Metrics want a token where callers have to sign in: set BROKER_METRICS_TOKEN at the broker, and send it as "
        "Authorization: Bearer."
    )


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """What `Accept` asks for; prometheus_client compares the parts of an odd version with numbers, and fails."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        return choose_encoder("")


METRICS_OPERATIONS = (
    Operation(
        name="get_metrics",
        method="get",
        path="/metrics",
        tag="Watching",
        summary="Metrics for Prometheus",
        description=(
            "In the text format, or in OpenMetrics where `Accept` asks for it. For whoever sends BROKER_METRICS_TOKEN, "
            "under any host name; for everybody only while that is unset and BROKER_AUTH is `none`."
        ),
        answers=(ResponseSpec(200, "All metrics.", media_type="text/plain"),),
        problems={401: ("metrics_token_needed",)},
        security=(None, "metricsToken"),
    ),
)
