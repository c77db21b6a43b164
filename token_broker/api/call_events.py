"""What the broker tells a call's page: `GET /realtime/calls/{call_id}/events`, opened by the session's token."""

from collections.abc import AsyncIterator
from typing import TypedDict

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from token_broker.api.calls import SESSION_PARAMETER, caller_of_session
from token_broker.api.offers import CallRelay
from token_broker.calls.page_events import ATTACHED, DETACHED, PageEvents
from token_broker.security.tokens import TokenError
from token_broker.sessions.ownership import Callers, ensure_not_blocked
from token_broker.web.openapi_document import Operation, Parameter, ResponseSpec
from token_broker.web.requests import Problem

__all__ = ["CALL_EVENT_OPERATIONS", "EventsState", "stream_events"]

_SILENCE_S = 15.0
_AGAIN_MS = 1000
_OF_THE_CALL = frozenset({ATTACHED, DETACHED})
_NUMBER_CHARS = 9


class EventsState(TypedDict):
    """What this route uses of the lifespan's state."""

    callers: Callers
    calls: CallRelay


async def stream_events(request: Request[EventsState]) -> Response:
    """Answers 200 with the call's events as they come; problems: 401, 403, 404, 429."""
    callers, calls = request.state["callers"], request.state["calls"]
    caller = caller_of_session(request)
    await callers.event_streams.admit(caller.limit_key)
    ensure_not_blocked(callers.blocklist, caller.owner.principal, caller.owner.session_id)
    shown_id = request.path_params["call_id"]
    try:
        call = calls.signer.read_call_token(shown_id)
    except TokenError:
        raise _unknown_call() from None
    session_id = caller.owner.session_id
    events = calls.watched.streams.find(session_id, call.call_id) if call.session_id == session_id else None
    if events is None:
        raise _unknown_call()
    if not events.has_room:
        detail = "This call's events are read too often at once: end another stream of it."
        raise Problem(429, "too_many_streams", detail, headers={"Retry-After": "5"})
    last = request.headers.get("last-event-id", "")
    after = int(last) if last.isascii() and last.isdigit() and len(last) <= _NUMBER_CHARS else 0
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(events, after, shown_id), headers=headers, media_type="text/event-stream")


async def _stream(events: PageEvents, after: int, shown_id: str) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % _AGAIN_MS  # at once, so that the page sees the answer's headers
    async for numbered in events.read(after, silence_s=_SILENCE_S):
        if numbered is None:
            yield b":\n\n"
            continue
        number, event = numbered
        if event["type"] in _OF_THE_CALL:
            event = {**event, "call_id": shown_id}
        yield b"%sdata: %s\n\n" % (b"id: %d\n" % number if number else b"", to_json(event))


def _unknown_call() -> Problem:
    detail = "This session has no such call here: use the call's own id. Ask again where another replica may hold it."
    return Problem(404, "unknown_call", detail, headers={"Retry-After": "1"})


CALL_EVENT_OPERATIONS = (
    Operation(
        name="stream_events",
        method="get",
        path="/api/v1/voice/realtime/calls/{call_id}/events",
        aliases=("/realtime/calls/{call_id}/events",),
        tag="Talking",
        summary="Read what the broker tells of a call",
        description=(
            "Server-sent events of a relayed or attached call: `broker.attached` once the broker has joined it, "
            "`broker.detached` when it has been gone for two seconds, `broker.tool`, `broker.error`, and others. After "
            "a break, `Last-Event-ID` reads on from there; the latest 256 events are kept. A comment comes every 15 s. "
            "The stream ends with the call. Four streams a call at most."
        ),
        parameters=(
            Parameter("call_id", "path", "The end of the call's `Location`, or what attaching it answered."),
            SESSION_PARAMETER,
            Parameter("Last-Event-ID", "header", "The number of the last event that was read."),
        ),
        answers=(
            ResponseSpec(
                200,
                "The events, as they come.",
                media_type="text/event-stream",
                example='id: 1\ndata: {"type":"broker.attached","event_id":"event_1","call_id":"eyJ…"}\n\n',
            ),
        ),
        problems={
            401: ("session_token_refused",),
            403: ("foreign_session", "blocked"),
            404: ("unknown_call",),
            429: ("rate_limited", "too_many_streams"),
            503: ("blocklist_unread",),
        },
        security=("sessionToken", "sessionTokenHeader"),
    ),
)
