"""The memory's routes: `/conversation/turn`, `/memory/enrich`, and a session's turns.

A turn is acknowledged once it is on disk, never before. A writer proves with the session's token that it is theirs.
"""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypedDict

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from token_broker.memory.service import Memory
from token_broker.memory.store_errors import (
    NotOwnerError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
)
from token_broker.memory.turn_schemas import (
    EnrichAnswer,
    EnrichBatch,
    Erased,
    SinkErased,
    Transcript,
    TurnAnswer,
    TurnPage,
    TurnReceipt,
    TurnRequest,
)
from token_broker.memory.types import Outcome, Turn, stored_bytes
from token_broker.security.authentication import Caller, Principal
from token_broker.security.limits import MemoryQuotas
from token_broker.security.tokens import Owner
from token_broker.sessions.ownership import Callers, ensure_not_blocked, session_erased
from token_broker.web.openapi_document import Body, Operation, Parameter, ResponseSpec
from token_broker.web.requests import (
    Problem,
    ensure_few_values,
    parse_json,
    read_body,
    uuid7,
    without_half_surrogates,
)

if TYPE_CHECKING:  # rows import SQLAlchemy, which is loaded when the store opens
    from token_broker.memory.types import StoredTurn

__all__ = ["MEMORY_OPERATIONS", "MemoryState", "create_turn", "enrich", "erase_turns", "list_turns"]

_NO_STORE = {"Cache-Control": "no-store"}
_PAGE = 100
_LARGEST_PAGE = 1000
_PIECE_BYTES = 65_536  # a page has megabytes: sent at once it would all lie in the socket's buffer
_FULL_RETRY_AFTER_S = 10


class MemoryState(TypedDict):
    """What these routes use of the lifespan's state."""

    callers: Callers
    memory: Memory
    quotas: MemoryQuotas


async def create_turn(request: Request[MemoryState]) -> Response:
    """`POST /conversation/turn`: 200 once the turn is durable; problems 400, 401, 403, 413, 422, 429, 503, 507."""
    writer = _writer(request)
    turns = await _counted(request, writer, _turn_of)
    outcome = (await _append(request, turns))[0]
    answer = TurnAnswer(turn_id=turns[0].turn_id, duplicate=outcome is Outcome.DUPLICATE)
    return _json(answer, 200)


def _turn_of(owner: Owner, limit_bytes: int, body: bytes) -> list[Turn]:
    wanted = parse_json(body, TurnRequest)
    _is_theirs(owner, wanted.session_id)
    turn = Turn(
        owner=owner,
        turn_id=wanted.turn_id or uuid7(),
        agent_id=wanted.agent_id,
        role=wanted.role,
        content=_within_limit(wanted.content, limit_bytes),
        created_at=wanted.created_at or datetime.now(UTC),
        source="browser",
        sequence=wanted.sequence,
        interrupted=wanted.interrupted,
    )
    return [turn]


async def enrich(request: Request[MemoryState]) -> Response:
    """`POST /memory/enrich`: 202 once all of it is durable; problems as for a turn."""
    writer = _writer(request)
    turns = await _counted(request, writer, _turns_of)
    outcomes = await _append(request, turns)
    accepted = sum(outcome is Outcome.STORED for outcome in outcomes)
    answer = EnrichAnswer(session_id=writer.owner.session_id, accepted=accepted, duplicates=len(outcomes) - accepted)
    return _json(answer, 202)


def _turns_of(owner: Owner, limit_bytes: int, body: bytes) -> list[Turn]:
    """One transcript, or a batch of them: the key `transcripts` tells which."""
    ensure_few_values(body)
    body = without_half_surrogates(body)
    try:
        batched = "transcripts" in from_json(body)
    except (ValueError, TypeError):
        batched = False
    transcripts = parse_json(body, EnrichBatch).transcripts if batched else [parse_json(body, Transcript)]
    for transcript in transcripts:
        _is_theirs(owner, transcript.session_id)
    now = datetime.now(UTC)
    return [
        Turn(
            owner=owner,
            turn_id=transcript.turn_id or uuid7(),
            agent_id=transcript.agent_id or "",
            role="user" if transcript.speaker.casefold() == "user" else "assistant",
            content=_within_limit(transcript.text, limit_bytes),
            created_at=now,
            source="browser",
            channel=transcript.channel,
        )
        for transcript in transcripts
    ]


async def list_turns(request: Request[MemoryState]) -> Response:
    """`GET …/sessions/{session_id}/turns`: a page of receipts; problems 400, 401, 403, 404, 429, 503."""
    session_id = request.path_params["session_id"]
    reader = await _admit_reader(request, session_id)
    limit = _limit(request.query_params.get("limit"))
    after = request.query_params.get("after")
    async with contextlib.AsyncExitStack() as slot:
        await slot.enter_async_context(request.state["quotas"].pages.slot(reader.limit_key))
        try:
            turns = await request.state["memory"].turns(session_id, principal=reader.id, limit=limit, after=after)
        except NotOwnerError:
            raise _not_yours() from None
        except StoreError as error:
            raise _store_problem(error) from None
        if turns is None:
            raise Problem(404, "unknown_turn", "`after` names no turn of this session; leave it out to begin anew.")
        more = turns[-1].turn_id if turns.more else None
        page = TurnPage(session_id=session_id, turns=[_receipt(turn) for turn in turns], next=more)
        return _PageResponse(page.__pydantic_serializer__.to_json(page), slot.pop_all())


def _receipt(turn: "StoredTurn") -> TurnReceipt:
    return TurnReceipt(
        turn_id=turn.turn_id,
        agent_id=turn.agent_id or None,
        role=turn.role,
        content=turn.content,
        sequence=turn.sequence,
        created_at=turn.created_at,
        interrupted=turn.interrupted,
        channel=turn.channel,
        source=turn.source,
        delivery=turn.delivery.label,
    )


class _PageResponse(Response):
    """A page that is sent in pieces, each when the client has taken the ones before. `slot` is released at the end."""

    def __init__(self, body: bytes, slot: contextlib.AsyncExitStack) -> None:
        super().__init__(body, media_type="application/json", headers=_NO_STORE)
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        async with self._slot:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            body = memoryview(self.body)
            for start in range(0, len(body), _PIECE_BYTES):
                piece = bytes(body[start : start + _PIECE_BYTES])
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def erase_turns(request: Request[MemoryState]) -> Response:
    """`DELETE …/sessions/{session_id}/turns`: 200 once it can't be read; the sinks are asked until they comply."""
    session_id = request.path_params["session_id"]
    reader = await _admit_reader(request, session_id)
    try:
        forgotten, receipt = await request.state["memory"].erase_session(session_id, principal=reader.id)
    except NotOwnerError:
        raise _not_yours() from None
    except StoreError as error:
        raise _store_problem(error) from None
    sinks = [SinkErased(sink=one.sink, state=one.state) for one in receipt]
    return _json(Erased(session_id=session_id, turns=forgotten, sinks=sinks), 200)


def _writer(request: Request[MemoryState]) -> Caller:
    """The caller who sends turns. Raises Problem 401, and 403 where they are blocked."""
    callers = request.state["callers"]
    caller = callers.by_session_token(request, _session_token_needed)
    ensure_not_blocked(callers.blocklist, caller.owner.principal, caller.owner.session_id)
    return caller


def _session_token_needed(detail: str) -> Problem:
    return Problem(401, "session_token_needed", detail)


async def _counted(
    request: Request[MemoryState], writer: Caller, turns_of: Callable[[Owner, int, bytes], list[Turn]]
) -> list[Turn]:
    """The body's turns, counted against the writer's quota. Raises Problem."""
    settings = request.state["callers"].settings

    async def read() -> list[Turn]:
        body = await read_body(request, limit_bytes=settings.max_memory_body_bytes, timeout_s=settings.body_timeout_s)
        return turns_of(writer.owner, settings.max_turn_bytes, body)

    def cost_of(turns: list[Turn]) -> tuple[int, int]:
        return len(turns), sum(map(stored_bytes, turns))

    return await request.state["quotas"].turns.take(writer.limit_key, read, cost_of)


def _is_theirs(owner: Owner, session_id: str) -> None:
    if session_id != owner.session_id:
        raise Problem(403, "foreign_session", "The session token is another session's: nobody writes into that one.")


async def _admit_reader(request: Request[MemoryState], session_id: str) -> Principal:
    """Admits the holder of the session's token, or the authenticated owner of a stored session; counts the read.

    The store checks the owner once more as it reads. Raises Problem 401, 403, 429 or 503.
    """
    callers = request.state["callers"]
    owner: Owner | None = None
    try:
        caller = callers.by_session_token(request, _session_token_needed)
    except Problem:
        if callers.settings.auth not in {"easyauth", "entra"}:
            raise
        reader = await callers.authenticator.authenticate(request.scope)
    else:
        owner = caller.owner
        reader = Principal(owner.principal, caller.limit_key)
    await request.state["quotas"].reads.admit(reader.limit_key)
    ensure_not_blocked(callers.blocklist, reader.id, session_id)
    if owner is not None:
        _is_theirs(owner, session_id)
        return reader
    try:
        record = await callers.sessions.find(session_id)
    except StoreError as error:
        raise _store_problem(error) from None
    if record is None or record.principal != reader.id:
        raise _not_yours()
    return reader


def _not_yours() -> Problem:
    return Problem(403, "foreign_session", "This session is not yours.")


def _within_limit(content: str, limit_bytes: int) -> str:
    if len(content) > limit_bytes or len(content.encode()) > limit_bytes:
        raise Problem(413, "turn_too_large", f"A turn has at most {limit_bytes} bytes of text.")
    return content


async def _append(request: Request[MemoryState], turns: list[Turn]) -> list[Outcome]:
    """Stores all of the turns or none. Raises Problem."""
    try:
        outcomes = await request.state["memory"].append(turns)
    except StoreError as error:
        raise _store_problem(error) from None
    if Outcome.ERASED in outcomes:
        raise session_erased()
    if Outcome.FOREIGN in outcomes:
        raise Problem(403, "foreign_session", "This session belongs to somebody else.")
    if Outcome.FULL in outcomes:
        limit = request.state["callers"].settings.session_bytes
        raise Problem(413, "session_full", f"This session has the {limit} bytes that one may have: begin another one.")
    return outcomes


def _store_problem(error: StoreError) -> Problem:
    if isinstance(error, StoreRefusedError):
        return Problem(422, "turn_refused", "The store does not take this turn as it is.")
    if isinstance(error, StoreFullError):
        detail = "The store has no room: nothing was acknowledged. Send it again later, with the same turn_id."
        return Problem(507, "store_full", detail, headers={"Retry-After": str(_FULL_RETRY_AFTER_S)})
    code = "store_busy" if isinstance(error, StoreBusyError) else "store_away"
    detail = "Nothing was acknowledged: send it again, with the same turn_id, so that it is stored once."
    return Problem(503, code, detail, headers={"Retry-After": "1" if isinstance(error, StoreBusyError) else "2"})


def _limit(value: str | None) -> int:
    if value is None:
        return _PAGE
    digits = value.lstrip("0")
    if not (digits.isascii() and digits.isdecimal()):
        raise Problem(422, "invalid_request", "limit: send a whole number of at least 1.")
    return _LARGEST_PAGE if len(digits) >= len(str(_LARGEST_PAGE)) else int(digits)


def _json(model: TurnAnswer | EnrichAnswer | Erased, status: int) -> Response:
    body = model.__pydantic_serializer__.to_json(model)
    return Response(body, status, media_type="application/json", headers=_NO_STORE)


_WRITE_PROBLEMS = {
    400: ("invalid_json", "client_left"),
    401: ("session_token_needed",),
    403: ("foreign_session", "session_erased", "blocked"),
    408: ("body_timeout",),
    413: ("body_too_large", "turn_too_large", "over_quota", "session_full"),
    422: ("invalid_request", "turn_refused"),
    429: ("turn_quota",),
    503: ("store_away", "store_busy"),
    507: ("store_full",),
}
_READ_PROBLEMS = {
    401: ("session_token_needed", "not_signed_in", "bad_principal", "invalid_token"),
    403: ("foreign_session", "insufficient_scope", "blocked"),
    429: ("rate_limited",),
    503: ("store_away", "store_busy", "identity_provider_unreachable"),
}
_EXAMPLE_SESSION = "019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11"
_SESSION = Parameter("session_id", "path", "The session.", example=_EXAMPLE_SESSION)
_TURNS = "/sessions/{session_id}/turns"

MEMORY_OPERATIONS = (
    Operation(
        name="create_turn",
        method="post",
        path="/api/v1/voice/conversation/turn",
        aliases=("/conversation/turn",),
        tag="Memory",
        summary="Keep a turn",
        description=(
            "Answered once the turn is durable. The same `turn_id` in the same session is stored once: send it again "
            "after a 429, 503 or 507, or where no answer came."
        ),
        body=Body(
            (TurnRequest,),
            example={
                "session_id": _EXAMPLE_SESSION,
                "agent_id": "elena",
                "role": "user",
                "content": "Which figures matter most?",
                "turn_id": "item_1",
                "sequence": 1,
            },
        ),
        answers=(ResponseSpec(200, "The turn is on disk.", TurnAnswer),),
        problems=_WRITE_PROBLEMS,
        security=("sessionToken", "sessionTokenHeader"),
    ),
    Operation(
        name="enrich",
        method="post",
        path="/api/v1/memory/enrich",
        aliases=("/memory/enrich",),
        tag="Memory",
        summary="Keep transcripts",
        description="One transcript or up to 100 of one session; shares its keys with the turns.",
        body=Body(
            (EnrichBatch, Transcript),
            example={"text": "Which figures matter most?", "session_id": _EXAMPLE_SESSION, "speaker": "user"},
        ),
        answers=(ResponseSpec(202, "All of it is on disk.", EnrichAnswer),),
        problems=_WRITE_PROBLEMS,
        security=("sessionToken", "sessionTokenHeader"),
    ),
    Operation(
        name="list_turns",
        method="get",
        path=f"/api/v1/memory{_TURNS}",
        aliases=(f"/memory{_TURNS}",),
        tag="Memory",
        summary="What was said, with receipts",
        description=(
            "A page of the session's turns in order, each with how far its delivery has come. It ends before `limit` "
            "where its turns come to 1 MiB; `next` says where to go on."
        ),
        parameters=(
            _SESSION,
            Parameter(
                "limit",
                "query",
                f"Turns a page; {_PAGE} where it is left out, {_LARGEST_PAGE} at most.",
                {"type": "integer", "minimum": 1},
            ),
            Parameter("after", "query", "The turn after which the page begins: the last page's `next`."),
        ),
        answers=(ResponseSpec(200, "The page.", TurnPage),),
        problems=_READ_PROBLEMS | {404: ("unknown_turn",), 422: ("invalid_request",)},
        security=("sessionToken", "sessionTokenHeader", "entra", "easyauth"),
    ),
    Operation(
        name="erase_turns",
        method="delete",
        path=f"/api/v1/memory{_TURNS}",
        aliases=(f"/memory{_TURNS}",),
        tag="Memory",
        summary="Forget a session",
        description=(
            "Once it is answered nobody reads the session or writes into it any more, its id stays taken, and its "
            "talks end. Its rows are deleted soon after, and each sink is asked to forget it until it has. "
            "Send it again to see how far the sinks have come."
        ),
        parameters=(_SESSION,),
        answers=(ResponseSpec(200, "The session is forgotten.", Erased),),
        problems=_READ_PROBLEMS,
        security=("sessionToken", "sessionTokenHeader", "entra", "easyauth"),
    ),
)
