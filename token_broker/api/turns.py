"""Turns in, receipts out: `/conversation/turn`, `/memory/enrich`, and a session's turns.

A turn is acknowledged once it is on disk, never before. Who writes proves with the session's token that it is theirs.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from token_broker.broker import Broker, broker_of
from token_broker.memory.errors import (
    NotOwnerError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
)
from token_broker.memory.ingest.sizes import stored_bytes
from token_broker.memory.schemas import (
    EnrichAnswer,
    EnrichBatch,
    Erased,
    Transcript,
    TurnAnswer,
    TurnPage,
    TurnReceipt,
    TurnRequest,
)
from token_broker.memory.types import Outcome, Owner, Turn
from token_broker.security.authentication import limit_key
from token_broker.security.tokens import TokenError
from token_broker.sessions.ownership import ensure_not_blocked, session_erased
from token_broker.web.ids import uuid7
from token_broker.web.openapi_document import Body, Operation, Parameter, ResponseSpec
from token_broker.web.problems import Problem
from token_broker.web.requests import bearer_token, ensure_few_values, parse_json, read_body

if TYPE_CHECKING:  # rows bring SQLAlchemy, which is loaded when the store opens
    from token_broker.memory.store.rows import StoredTurn

__all__ = ["MEMORY_OPERATIONS", "create_turn", "enrich", "erase_turns", "list_turns"]

_NO_STORE = {"Cache-Control": "no-store"}
_PAGE = 100
_LARGEST_PAGE = 1000
_PIECE_BYTES = 65_536  # of an answer, sent at once
_FULL_RETRY_AFTER_S = 10


async def create_turn(request: Request) -> Response:
    """`POST /conversation/turn`: 200 once the turn is durable; problems 400, 401, 403, 413, 422, 429, 503, 507."""
    broker = broker_of(request)
    owner, key = _writer(request, broker)
    turns = await _counted(request, broker, key, partial(_turn_of, owner, broker.settings.max_turn_bytes))
    outcome = (await _append(broker, key, turns))[0]
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


async def enrich(request: Request) -> Response:
    """`POST /memory/enrich`: 202 once all of it is durable; problems as for a turn."""
    broker = broker_of(request)
    owner, key = _writer(request, broker)
    turns = await _counted(request, broker, key, partial(_turns_of, owner, broker.settings.max_turn_bytes))
    outcomes = await _append(broker, key, turns)
    accepted = sum(outcome is Outcome.STORED for outcome in outcomes)
    answer = EnrichAnswer(session_id=owner.session_id, accepted=accepted, duplicates=len(outcomes) - accepted)
    return _json(answer, 202)


def _turns_of(owner: Owner, limit_bytes: int, body: bytes) -> list[Turn]:
    transcripts = _transcripts(body)
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


async def list_turns(request: Request) -> Response:
    """`GET …/sessions/{session_id}/turns`: a page of receipts; problems 400, 401, 403, 404, 429, 503."""
    session_id = request.path_params["session_id"]
    reader = await _admit_reader(request, session_id)
    limit = _limit(request.query_params.get("limit"))
    after = request.query_params.get("after")
    broker = broker_of(request)
    async with contextlib.AsyncExitStack() as place:
        await place.enter_async_context(broker.quotas.pages.place(reader.key))
        try:
            turns = await broker.memory.turns(session_id, principal=reader.principal, limit=limit, after=after)
        except NotOwnerError:
            raise _not_yours() from None
        except StoreError as error:
            raise _store_problem(error) from None
        if turns is None:
            raise Problem(404, "unknown_turn", "`after` names no turn of this session; leave it out to begin anew.")
        more = turns[-1].turn_id if turns.more else None
        page = TurnPage(session_id=session_id, turns=[_receipt(turn) for turn in turns], next=more)
        return _PageResponse(page.__pydantic_serializer__.to_json(page), place.pop_all())


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
    """A page that is sent in pieces, each once the client has taken those before; `place` is left at its end."""

    def __init__(self, body: bytes, place: contextlib.AsyncExitStack) -> None:
        super().__init__(body, media_type="application/json", headers=_NO_STORE)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        async with self._place:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            body = memoryview(self.body)
            for start in range(0, len(body), _PIECE_BYTES):
                piece = bytes(body[start : start + _PIECE_BYTES])
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def erase_turns(request: Request) -> Response:
    """`DELETE …/sessions/{session_id}/turns`: 200 once nobody can read it; Zep is asked soon after, until it has."""
    session_id = request.path_params["session_id"]
    reader = await _admit_reader(request, session_id)
    try:
        forgotten = await broker_of(request).memory.erase_session(session_id, principal=reader.principal)
    except NotOwnerError:
        raise _not_yours() from None
    except StoreError as error:
        raise _store_problem(error) from None
    return _json(Erased(session_id=session_id, turns=forgotten), 200)


def _owner(request: Request, broker: Broker) -> Owner:
    """Whose session the request's session token proves. Raises Problem 401."""
    token = bearer_token(request)
    if token is None:
        raise _unproven("Send the plan's session_token as `Authorization: Bearer`.")
    try:
        claims = broker.signer.read_session_token(token)
    except TokenError as error:
        text = "The session token has expired" if error.expired else "This is no session token of this broker's"
        raise _unproven(f"{text}: ask POST /realtime/token for a new plan.") from None
    return Owner(claims.session_id, claims.principal, claims.epoch, claims.user_id)


def _writer(request: Request, broker: Broker) -> tuple[Owner, str]:
    """Who sends turns, and the key that they are counted by. Raises Problem 401, and 403 for who is blocked."""
    owner = _owner(request, broker)
    ensure_not_blocked(broker.memory.blocklist, owner.principal, owner.session_id)
    return owner, _key(request, broker, owner.principal)


def _key(request: Request, broker: Broker, principal: str) -> str:
    return limit_key(request.scope, principal, broker.settings.trusted_proxies)


async def _counted(request: Request, broker: Broker, key: str, turns_of: Callable[[bytes], list[Turn]]) -> list[Turn]:
    """The body's turns, unless the quota is used up already; a body that turns out to be refused counts as a turn."""
    await broker.quotas.turns.ensure_not_used_up(key)
    try:
        return turns_of(await _body(request, broker))
    except Problem:
        broker.quotas.turns.count_refused(key)
        raise


def _unproven(detail: str) -> Problem:
    return Problem(401, "session_token_needed", detail)


def _is_theirs(owner: Owner, session_id: str) -> None:
    if session_id != owner.session_id:
        raise Problem(403, "foreign_session", "The session token is another session's: nobody writes into that one.")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Who reads or erases: `principal` is whose the session has to be, `key` what they are counted by."""

    principal: str
    key: str


async def _admit_reader(request: Request, session_id: str) -> _Reader:
    """Admits the session's token, or an authenticated principal of a stored session; counts them.

    The store says whether the session is theirs, as it reads. Raises Problem 401, 403, 429 or 503.
    """
    broker = broker_of(request)
    try:
        owner = _owner(request, broker)
    except Problem:
        if broker.settings.auth not in {"easyauth", "entra"}:
            raise
        principal, has_token = (await broker.authenticator.authenticate(request.scope)).id, False
    else:
        principal, has_token = owner.principal, True
    reader = _Reader(principal, _key(request, broker, principal))
    await broker.quotas.reads.admit(reader.key)
    ensure_not_blocked(broker.memory.blocklist, principal, session_id)
    if has_token:
        _is_theirs(owner, session_id)
    else:
        await _ensure_stored_owner(broker, principal, session_id)
    return reader


async def _ensure_stored_owner(broker: Broker, principal: str, session_id: str) -> None:
    """Who has no token of the session needs a stored session that is theirs. Raises Problem 403 or 503."""
    try:
        record = await broker.memory.sessions.find(session_id)
    except StoreError as error:
        raise _store_problem(error) from None
    if record is None or record.principal != principal:
        raise _not_yours()


def _not_yours() -> Problem:
    return Problem(403, "foreign_session", "This session is not yours.")


async def _body(request: Request, broker: Broker) -> bytes:
    settings = broker.settings
    return await read_body(request, limit_bytes=settings.max_memory_body_bytes, timeout_s=settings.body_timeout_s)


def _transcripts(body: bytes) -> Sequence[Transcript]:
    """One transcript, or a batch of them: told apart by the key `transcripts`."""
    ensure_few_values(body)
    try:
        batched = "transcripts" in from_json(body)
    except (ValueError, TypeError):
        batched = False
    return parse_json(body, EnrichBatch).transcripts if batched else [parse_json(body, Transcript)]


def _within_limit(content: str, limit_bytes: int) -> str:
    if len(content) > limit_bytes or len(content.encode()) > limit_bytes:
        raise Problem(413, "turn_too_large", f"A turn has at most {limit_bytes} bytes of text.")
    return content


async def _append(broker: Broker, key: str, turns: list[Turn]) -> list[Outcome]:
    """Stores them all or none, and counts them against the quota first. Raises Problem."""
    await broker.quotas.turns.take(key, len(turns), sum(map(stored_bytes, turns)))
    try:
        outcomes = await broker.memory.append(turns)
    except StoreError as error:
        raise _store_problem(error) from None
    if Outcome.ERASED in outcomes:
        raise session_erased()
    if Outcome.FOREIGN in outcomes:
        raise Problem(403, "foreign_session", "This session belongs to somebody else.")
    if Outcome.FULL in outcomes:
        limit = broker.settings.session_bytes
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
        security=("sessionToken",),
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
        security=("sessionToken",),
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
        security=("sessionToken", "entra", "easyauth"),
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
            "talks end. Its rows are deleted soon after, and Zep is asked to forget it until it has."
        ),
        parameters=(_SESSION,),
        answers=(ResponseSpec(200, "The session is forgotten.", Erased),),
        problems=_READ_PROBLEMS,
        security=("sessionToken", "entra", "easyauth"),
    ),
)
