"""`POST /realtime/report`: what a page has measured of its talk, for `/metrics`.

Over WebRTC nobody else knows how long the user waits and how well the media travels. A report is believed by nothing
but metrics, whose labels come from fixed lists.
"""

from typing import Annotated, TypedDict, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from token_broker.observability.events import FailureReason, Metrics, PageReported, PageTransport
from token_broker.security.limits import MemoryQuotas
from token_broker.sessions.ownership import Callers, ensure_not_blocked
from token_broker.web.openapi_document import Body, Operation, ResponseSpec
from token_broker.web.requests import Problem, parse_json, read_body, whole_number

__all__ = ["REPORT_OPERATIONS", "ReportState", "TalkReport", "report_talk"]

_BODY_BYTES = 16_384
_REASONS = frozenset(get_args(FailureReason))
# A client may be newer than the broker.
_newer_is_other = BeforeValidator(lambda value: "other" if isinstance(value, str) and value not in _REASONS else value)


class ReportState(TypedDict):
    """What this route uses of the lifespan's state."""

    callers: Callers
    quotas: MemoryQuotas
    metrics: Metrics


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class MeasuredTurn(_Part):
    """One turn's wait, from the end of the user's speech to the first sound of the answer."""

    turn_ms: Annotated[float, Field(ge=0, le=120_000, allow_inf_nan=False)]


class MediaQuality(_Part):
    """WebRTC's own statistics: round trip and jitter now, and the packets that were lost since the last report."""

    rtt_ms: Annotated[float, Field(ge=0, le=60_000, allow_inf_nan=False)] | None = None
    jitter_ms: Annotated[float, Field(ge=0, le=60_000, allow_inf_nan=False)] | None = None
    lost: Annotated[int, Field(ge=0, le=1_000_000), BeforeValidator(whole_number)] | None = None


class FailedTransport(_Part):
    """A transport that failed in this talk, and why; a reason that the broker does not know counts as `other`."""

    transport: PageTransport
    reason: Annotated[FailureReason, _newer_is_other, WithJsonSchema({"type": "string", "examples": sorted(_REASONS)})]


class TalkReport(_Part):
    """What a page has measured since its last report. All but the first two fields may be left out."""

    session_id: str
    transport: PageTransport
    live_after_ms: Annotated[float, Field(ge=0, le=600_000, allow_inf_nan=False)] | None = Field(
        None, description="From the user's wish to talk until the talk was live; in the first report alone."
    )
    turns: Annotated[list[MeasuredTurn], Field(max_length=100)] = []
    rtc: MediaQuality | None = None
    failures: Annotated[list[FailedTransport], Field(max_length=20)] = []


async def report_talk(request: Request[ReportState]) -> Response:
    """Answers 204; problems 400, 401, 403, 408, 413, 422, 429."""
    callers = request.state["callers"]
    caller = callers.by_session_token(request, lambda detail: Problem(401, "session_token_needed", detail))
    ensure_not_blocked(callers.blocklist, caller.owner.principal, caller.owner.session_id)
    await request.state["quotas"].reports.admit(caller.limit_key)
    body = await read_body(request, limit_bytes=_BODY_BYTES, timeout_s=callers.settings.body_timeout_s)
    report = parse_json(body, TalkReport)
    if report.session_id != caller.owner.session_id:
        raise Problem(403, "foreign_session", "The session token is another session's: report for your own.")
    rtc = report.rtc or MediaQuality()
    request.state["metrics"](
        PageReported(
            report.transport,
            live_after_s=_seconds(report.live_after_ms),
            turns_s=tuple(turn.turn_ms / 1000 for turn in report.turns),
            rtt_s=_seconds(rtc.rtt_ms),
            jitter_s=_seconds(rtc.jitter_ms),
            packets_lost=rtc.lost or 0,
            failures=tuple((failure.transport, failure.reason) for failure in report.failures),
        )
    )
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


REPORT_OPERATIONS = (
    Operation(
        name="report_talk",
        method="post",
        path="/api/v1/voice/realtime/report",
        aliases=("/realtime/report",),
        tag="Talking",
        summary="Report what a page has measured",
        description=(
            "For metrics: how long the talk took to be live, how long the user waited for answers, WebRTC's statistics "
            f"and transports that failed, each since the last report. At most {_BODY_BYTES} bytes, and as often as "
            "turns may be sent. The browser client does it by itself."
        ),
        body=Body(
            (TalkReport,),
            example={
                "session_id": "019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11",
                "transport": "webrtc",
                "live_after_ms": 840,
                "turns": [{"turn_ms": 620}],
                "rtc": {"rtt_ms": 38, "jitter_ms": 4, "lost": 0},
                "failures": [{"transport": "webrtc", "reason": "ice_failed"}],
            },
        ),
        answers=(ResponseSpec(204, "It is counted."),),
        problems={
            400: ("invalid_json", "client_left"),
            401: ("session_token_needed",),
            403: ("foreign_session", "blocked"),
            408: ("body_timeout",),
            413: ("body_too_large",),
            422: ("invalid_request",),
            429: ("rate_limited",),
            503: ("blocklist_unread",),
        },
        security=("sessionToken", "sessionTokenHeader"),
    ),
)
