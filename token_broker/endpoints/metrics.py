"""`GET /metrics`: figures for Prometheus, for whoever holds BROKER_METRICS_TOKEN where it is set."""

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from token_broker.broker import broker_of
from token_broker.endpoints.status import may_see_all
from token_broker.openapi import Answer, Operation
from token_broker.problems import Problem

__all__ = ["METRICS_OPERATIONS", "get_metrics"]


async def get_metrics(request: Request) -> Response:
    """All metrics, as text or, where it is asked for, as OpenMetrics. Problem 401 without the token."""
    broker = broker_of(request)
    if not may_see_all(request, broker):
        raise Problem(401, "metrics_token_needed", "Send BROKER_METRICS_TOKEN as Authorization: Bearer.")
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    body = encode(broker.metrics.registry)
    return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})


METRICS_OPERATIONS = (
    Operation(
        name="get_metrics",
        method="get",
        path="/metrics",
        tag="Watching",
        summary="Metrics for Prometheus",
        description="In the text format, or in OpenMetrics where `Accept` asks for it.",
        answers=(Answer(200, "All metrics.", media_type="text/plain"),),
        problems={401: ("metrics_token_needed",)},
        security=(None, "metricsToken"),
    ),
)
