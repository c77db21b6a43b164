"""`GET /api/v1/usage`: what the caller's own talks have used."""

from typing import TypedDict

from starlette.requests import Request
from starlette.responses import Response

from token_broker.memory.service import Memory
from token_broker.memory.store_errors import StoreError
from token_broker.security.authentication import Principal
from token_broker.security.limits import MemoryQuotas
from token_broker.security.tokens import ANONYMOUS
from token_broker.sessions.ownership import Callers, ensure_not_blocked
from token_broker.usage.reports import UsageReport, read_usage, since_day
from token_broker.web.openapi_document import Operation, Parameter, ResponseSpec
from token_broker.web.requests import Problem

__all__ = ["USAGE_OPERATIONS", "UsageState", "get_usage"]

_GROUPS = ("agent", "resource", "day", "session")
_MOST = 1000
_RETRY_AFTER_S = 2


class UsageState(TypedDict):
    """What this route uses of the lifespan's state."""

    callers: Callers
    memory: Memory
    quotas: MemoryQuotas


async def get_usage(request: Request[UsageState]) -> Response:
    """Answers 200 with a `UsageReport`; problems: 401, 403, 422, 429, 503."""
    callers = request.state["callers"]
    session_id: str | None = None
    try:
        caller = callers.by_session_token(request, lambda detail: Problem(401, "session_token_needed", detail))
    except Problem:
        if callers.settings.auth not in {"easyauth", "entra"}:
            raise
        reader = await callers.authenticator.authenticate(request.scope)
    else:
        reader = Principal(caller.owner.principal, caller.limit_key)
        session_id = caller.owner.session_id
    await request.state["quotas"].reads.admit(reader.limit_key)
    ensure_not_blocked(callers.blocklist, reader.id, session_id or "")
    by, since = request.query_params.get("by"), request.query_params.get("since")
    if by not in {None, *_GROUPS}:
        raise Problem(422, "invalid_request", f"by: send one of {', '.join(_GROUPS)}, or leave it out.")
    try:
        day = None if since is None else since_day(since)
    except ValueError:
        raise Problem(422, "invalid_request", "since: send a date such as 2026-11-29, or 7d.") from None
    # Nobody's name is everybody's: without a sign-in the session's token proves its own session alone.
    own = {"session_id": session_id} if reader.id == ANONYMOUS else {"principal": reader.id}
    try:
        report = await read_usage(request.state["memory"].database, by=by, since=day, limit=_MOST, **own)
    except StoreError:
        detail = "The store does not answer just now: try again."
        raise Problem(503, "store_away", detail, headers={"Retry-After": str(_RETRY_AFTER_S)}) from None
    body = report.__pydantic_serializer__.to_json(report)
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


USAGE_OPERATIONS = (
    Operation(
        name="get_usage",
        method="get",
        path="/api/v1/usage",
        aliases=(),
        tag="Talking",
        summary="What the caller's talks have used",
        description=(
            "The caller's own, by sign-in or by a session's token; without a sign-in, that session's. Each talk by "
            "Azure resource and UTC day, or sums. Numbers lag by up to 15 s while a talk goes on; "
            f"{_MOST} entries at most."
        ),
        parameters=(
            Parameter("by", "query", "What to sum by.", {"type": "string", "enum": list(_GROUPS)}),
            Parameter(
                "since",
                "query",
                "The first UTC day: a date such as 2026-11-29, or so many days ago, as 7d.",
                {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "pattern": "^[0-9]{1,4}d$"}]},
            ),
        ),
        answers=(ResponseSpec(200, "The usage.", UsageReport),),
        problems={
            401: ("session_token_needed", "not_signed_in", "bad_principal", "invalid_token"),
            403: ("insufficient_scope", "blocked"),
            422: ("invalid_request",),
            429: ("rate_limited",),
            503: ("store_away", "blocklist_unread", "identity_provider_unreachable"),
        },
        security=("sessionToken", "sessionTokenHeader", "entra", "easyauth"),
    ),
)
