"""The memory's routes as an application of their own, around a real `Memory`."""

from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from token_broker.api.turns import MemoryState, create_turn, enrich, erase_turns, list_turns
from token_broker.bootstrap import memory_quotas
from token_broker.memory.service import Memory
from token_broker.security.authentication import make_authenticator
from token_broker.security.limits import MemoryQuotas, RateLimiter
from token_broker.security.tokens import Owner, TokenSigner
from token_broker.sessions.ownership import Callers
from token_broker.settings import Settings
from token_broker.web.requests import Problem, problem_response

TURNS = "/api/v1/memory/sessions/{session_id}/turns"


def signer(settings: Settings) -> TokenSigner:
    return TokenSigner(settings.signing_keys)


def session_token(settings: Settings, owner: Owner, *, ttl_s: int = 3600) -> str:
    return signer(settings).session_token(owner, ttl_s=ttl_s)


def bearer(settings: Settings, owner: Owner, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {session_token(settings, owner, **claims)}"}


def make_app(settings: Settings, memory: Memory, *, quotas: MemoryQuotas | None = None) -> ASGIApp:
    """The routes, and with each request the state that they use, whether a server runs the lifespan or not."""
    state = MemoryState(
        callers=Callers(
            settings=settings,
            signer=signer(settings),
            authenticator=make_authenticator(settings, httpx.AsyncClient()),
            sessions=memory.sessions,
            blocklist=memory.blocklist,
            rate=RateLimiter(0),
            hang_ups=RateLimiter(0),
            event_streams=RateLimiter(0),
        ),
        memory=memory,
        quotas=quotas or memory_quotas(settings),
    )
    app = Starlette(
        routes=[
            Route("/conversation/turn", create_turn, methods=["POST"]),
            Route("/memory/enrich", enrich, methods=["POST"]),
            Route(TURNS, list_turns, methods=["GET"]),
            Route(TURNS, erase_turns, methods=["DELETE"]),
        ],
        exception_handlers={Problem: _answer_problem},
    )

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    return with_state


async def _answer_problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem_response(problem, request.scope)
