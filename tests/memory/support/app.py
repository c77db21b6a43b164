"""The memory's routes as an application of their own, around a real `Memory`."""

from types import SimpleNamespace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from token_broker.api.turns import create_turn, enrich, erase_turns, list_turns
from token_broker.memory.service import Memory
from token_broker.security.authentication import make_authenticator
from token_broker.security.owner import Owner
from token_broker.security.quotas import MemoryQuotas
from token_broker.security.tokens import TokenSigner
from token_broker.settings import Settings
from token_broker.web.problems import Problem, problem_response

TURNS = "/api/v1/memory/sessions/{session_id}/turns"


def signer(settings: Settings) -> TokenSigner:
    return TokenSigner(settings.signing_keys)


def session_token(settings: Settings, owner: Owner, *, ttl_s: int = 3600) -> str:
    return signer(settings).session_token(owner, ttl_s=ttl_s)


def bearer(settings: Settings, owner: Owner, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {session_token(settings, owner, **claims)}"}


def make_app(settings: Settings, memory: Memory) -> Starlette:
    app = Starlette(
        routes=[
            Route("/conversation/turn", create_turn, methods=["POST"]),
            Route("/memory/enrich", enrich, methods=["POST"]),
            Route(TURNS, list_turns, methods=["GET"]),
            Route(TURNS, erase_turns, methods=["DELETE"]),
        ],
        exception_handlers={Problem: _answer_problem},
    )
    app.state.broker = SimpleNamespace(
        memory=memory,
        quotas=MemoryQuotas(settings),
        settings=settings,
        signer=signer(settings),
        authenticator=make_authenticator(settings, None),  # type: ignore[arg-type]  # asked by Entra alone
    )
    return app


async def _answer_problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem_response(problem, request.scope)
