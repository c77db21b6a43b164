"""Calls that pages set up at Azure by themselves, and what the broker tells the page of a call.

`POST /realtime/calls/attach` has the broker join such a call; `GET /realtime/calls/{call_id}/events` streams events.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Protocol, TypedDict

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from strategies.base import SpecSupplier
from token_broker.api.calls import SESSION_PARAMETER, caller_of_session, foreign_session
from token_broker.api.offers import CallRelay, store_away
from token_broker.calls.call_row import AttachClaim
from token_broker.calls.followed_calls import FollowedCall, SharedEvents, Told
from token_broker.calls.page_events import ATTACHED, DETACHED, ELSEWHERE, CallStreams, PageEvents
from token_broker.memory.store_errors import StoreError
from token_broker.security.limits import SessionLease, too_many_sessions
from token_broker.security.tokens import MintedSession, Owner, TokenError
from token_broker.sessions.agents import Agent
from token_broker.sessions.ownership import Callers, ensure_not_blocked
from token_broker.sessions.plans import TalkSpecs
from token_broker.web.openapi_document import Body, Operation, Parameter, ResponseSpec
from token_broker.web.requests import Problem, parse_json, read_body

__all__ = ["CALL_EVENT_OPERATIONS", "AttachAnswer", "AttachRequest", "EventsState", "attach_call", "stream_events"]

_SILENCE_S = 15.0
_AGAIN_MS = 1000
_OF_THE_CALL = frozenset({ATTACHED, DETACHED})
_NUMBER_CHARS = 9
CLAIM_REFUSALS: dict[AttachClaim, str] = {
    "foreign": "it is another session's",
    "refused": "it was refused before, or has ended",
}


class AttachesCalls(Protocol):
    """`CallAttacher`, as far as it is needed here."""

    def is_attached(self, owner: Owner, call_id: object) -> bool: ...
    def refusal(self, owner: Owner, minted: MintedSession | None, call_id: object) -> str | None: ...
    async def begin(
        self,
        owner: Owner,
        agent: Agent,
        minted: MintedSession,
        call_id: str,
        *,
        supply: SpecSupplier,
        lease: SessionLease,
    ) -> AttachClaim: ...


class EventsState(TypedDict):
    """What this route uses of the lifespan's state."""

    callers: Callers
    calls: CallRelay
    attacher: AttachesCalls
    call_streams: CallStreams
    shared_events: SharedEvents


class AttachRequest(BaseModel):
    """Names a call that the page has set up at Azure with its plan's token."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    session_id: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="The session; the token's own, where it is named."
    )
    call_id: Any = Field(
        description="The end of the `Location` that Azure answered the offer with.",
        json_schema_extra={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,200}$", "examples": ["rtc_u0_abc"]},
    )


class AttachAnswer(BaseModel):
    """The call is being attached, or is attached already."""

    call_id: str = Field(description="The broker's own id of the call: it names the call's events, and hangs up.")


async def attach_call(request: Request[EventsState]) -> Response:
    """Answers 202 at once with our id of the call; problems: 400, 401, 403, 404, 408, 413, 422, 429, 503."""
    callers, calls = request.state["callers"], request.state["calls"]
    callers.ensure_staying()
    settings = callers.settings
    caller = caller_of_session(request)
    await callers.rate.admit(caller.limit_key)
    owner = caller.owner
    ensure_not_blocked(callers.blocklist, owner.principal, owner.session_id)
    body = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    wanted = parse_json(body, AttachRequest)
    if wanted.session_id not in {None, owner.session_id}:
        raise foreign_session()
    agent = calls.minting.find_agent(caller.agent_id)
    attacher, minted = request.state["attacher"], caller.minted
    is_attached = attacher.is_attached(owner, wanted.call_id)
    if not is_attached and (why := attacher.refusal(owner, minted, wanted.call_id)) is not None:
        raise _refused(why)
    if not is_attached and minted is not None:
        if agent.is_seen or agent.sockets_only:
            raise _refused("this agent's talks go another way")
        if (lease := calls.talks.acquire(caller.limit_key)) is None:
            raise too_many_sessions()
        supply = TalkSpecs(settings, owner, None).of(agent)  # the sideband tells what is recalled
        try:
            claim = await attacher.begin(owner, agent, minted, wanted.call_id, supply=supply, lease=lease)
        except (StoreError, TimeoutError):
            raise store_away() from None
        if claim in CLAIM_REFUSALS:
            raise _refused(CLAIM_REFUSALS[claim])
    shown_id = calls.signer.call_token(
        session_id=owner.session_id,
        call_id=wanted.call_id,
        endpoint="",  # it ends nothing: whether the call is this session's is not known yet
        ttl_s=settings.session_token_ttl_s,
    )
    return JSONResponse({"call_id": shown_id}, 202, {"Cache-Control": "no-store"})


def _refused(why: str) -> Problem:
    return Problem(403, "call_refused", f"This call can't be attached: {why}.")


async def stream_events(request: Request[EventsState]) -> Response:
    """Answers 200 with the call's events as they come; problems: 401, 403, 404, 429, 503."""
    callers, calls = request.state["callers"], request.state["calls"]
    caller = caller_of_session(request)
    await callers.event_streams.admit(caller.limit_key)
    ensure_not_blocked(callers.blocklist, caller.owner.principal, caller.owner.session_id)
    shown_id = request.path_params["call_id"]
    try:
        call = calls.signer.read_call_token(shown_id)
    except TokenError:
        raise _unknown_call() from None
    if call.session_id != caller.owner.session_id:
        raise _unknown_call()
    page = call.session_id, call.call_id
    streams, shared = request.state["call_streams"], request.state["shared_events"]
    events: PageEvents | FollowedCall | None = streams.find(*page)
    if events is None:  # another replica may hold it, perhaps since we have left it
        try:
            events = await shared.follow(page) or streams.ended(*page)
        except StoreError:
            events = streams.ended(*page)
            if events is None:
                raise store_away() from None
    if events is None:
        raise _unknown_call()
    if not events.has_room:
        detail = "This call's events are read too often at once: end another stream of it."
        raise Problem(429, "too_many_streams", detail, headers={"Retry-After": "5"})
    last = request.headers.get("last-event-id", "")
    told = _named(events, last) if isinstance(events, PageEvents) else events.read(last, silence_s=_SILENCE_S)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(told, shown_id), headers=headers, media_type="text/event-stream")


async def _named(events: PageEvents, last: str) -> AsyncGenerator[Told | None]:
    """The events of a call that is held here, by their names."""
    told_by, _, number = last.partition("-")
    is_number = number.isascii() and number.isdigit() and len(number) <= _NUMBER_CHARS
    after = int(number) if told_by == events.name and is_number else 0
    async with contextlib.aclosing(events.read(after, silence_s=_SILENCE_S)) as numbered:
        async for each in numbered:
            yield None if each is None else (f"{events.name}-{each[0]}" if each[0] else "", each[1])


async def _stream(told: AsyncGenerator[Told | None], shown_id: str) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % _AGAIN_MS  # at once, so that the page sees the answer's headers
    async with contextlib.aclosing(told):
        async for each in told:
            if each is None:
                yield b":\n\n"
                continue
            name, event = each
            if event["type"] in _OF_THE_CALL:
                event = {**{field: event[field] for field in event if field != ELSEWHERE}, "call_id": shown_id}
            shown = f"id: {name}\n" if name else ""
            yield b"%sdata: %s\n\n" % (shown.encode(), to_json(event))


def _unknown_call() -> Problem:
    detail = "This session has no such call: use the call's own id. Ask again where it was set up a moment ago."
    return Problem(404, "unknown_call", detail, headers={"Retry-After": "1"})


CALL_EVENT_OPERATIONS = (
    Operation(
        name="attach_call",
        method="post",
        path="/api/v1/voice/realtime/calls/attach",
        aliases=("/realtime/calls/attach",),
        tag="Talking",
        summary="Have the broker join a call that the page set up at Azure",
        description=(
            "For the plan's `webrtc`. Answers at once, once or several times alike; the call's events tell the rest. "
            "The broker joins without changing anything, and goes on only where Azure's session is the one that this "
            "plan's token was minted for: `broker.attached`, else `broker.error` with `not_verified`. From then on it "
            "keeps turns and usage, runs the agent's tools, and can end the call. Counts as a token request, and as an "
            "open talk. 403 `call_refused`: an id of another form, another session's, one that was refused or has "
            "ended, at any replica, or a plan without such a call; Azure is not asked. 503 `store_away`: whose it is "
            "can't be told just now."
        ),
        body=Body(models=(AttachRequest,), example={"session_id": "019aaf0e-…", "call_id": "rtc_u0_abc"}),
        answers=(ResponseSpec(202, "The call is being attached.", model=AttachAnswer, example={"call_id": "eyJ…"}),),
        problems={
            400: ("invalid_json", "client_left"),
            401: ("session_token_refused",),
            403: ("foreign_session", "blocked", "call_refused"),
            404: ("unknown_agent",),
            408: ("body_timeout",),
            413: ("body_too_large",),
            422: ("invalid_request",),
            429: ("rate_limited", "too_many_sessions"),
            503: ("draining", "blocklist_unread", "store_away"),
        },
        security=("sessionToken", "sessionTokenHeader"),
    ),
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
            "The stream ends with the call. Four streams a call at most. Any replica answers; one that does not hold "
            "the call is about a second behind."
        ),
        parameters=(
            Parameter("call_id", "path", "The end of the call's `Location`, or what attaching it answered."),
            SESSION_PARAMETER,
            Parameter("Last-Event-ID", "header", "The `id` of the last event that was read."),
        ),
        answers=(
            ResponseSpec(
                200,
                "The events, as they come.",
                media_type="text/event-stream",
                example='id: 5f0c9a1e-1\ndata: {"type":"broker.attached","event_id":"event_1","call_id":"eyJ…"}\n\n',
            ),
        ),
        problems={
            401: ("session_token_refused",),
            403: ("foreign_session", "blocked"),
            404: ("unknown_call",),
            429: ("rate_limited", "too_many_streams"),
            503: ("blocklist_unread", "store_away"),
        },
        security=("sessionToken", "sessionTokenHeader"),
    ),
)
