"""The memory's routes as an application of their own, around a real `Memory`."""

import contextlib
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from token_broker.auth import make_authenticator
from token_broker.endpoints.memory import create_turn, enrich, forget_turns, list_turns
from token_broker.memory.base import Owner
from token_broker.memory.service import Memory
from token_broker.problems import Problem, problem_response
from token_broker.settings import Settings
from token_broker.tokens import TokenSigner

TURNS = "/api/v1/memory/sessions/{session_id}/turns"


def signer(settings: Settings) -> TokenSigner:
    return TokenSigner(settings.signing_keys)


def session_token(settings: Settings, owner: Owner, *, ttl_s: int = 3600) -> str:
    return signer(settings).session_token(
        session_id=owner.session_id, principal=owner.principal, epoch=owner.epoch, user_id=owner.user_id, ttl_s=ttl_s
    )


def bearer(settings: Settings, owner: Owner, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {session_token(settings, owner, **claims)}"}


def make_app(settings: Settings, memory: Memory | None = None) -> Starlette:
    """The routes around `memory`, or around one that is opened when the app begins."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with Memory.open(settings) as opened:
            app.state.broker = _broker(settings, opened)
            yield

    app = Starlette(
        routes=[
            Route("/conversation/turn", create_turn, methods=["POST"]),
            Route("/memory/enrich", enrich, methods=["POST"]),
            Route(TURNS, list_turns, methods=["GET"]),
            Route(TURNS, forget_turns, methods=["DELETE"]),
        ],
        exception_handlers={Problem: _answer_problem},
        lifespan=lifespan,
    )
    if memory is not None:
        app.state.broker = _broker(settings, memory)
    return app


def _broker(settings: Settings, memory: Memory) -> SimpleNamespace:
    return SimpleNamespace(
        memory=memory,
        settings=settings,
        signer=signer(settings),
        sessions=memory.sessions,
        authenticator=make_authenticator(settings, None),  # type: ignore[arg-type]  # asked by Entra alone
    )


async def _answer_problem(_request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem_response(problem, "test")


def main() -> None:
    """A process of its own, to be measured or killed; its one argument is a listening socket's file descriptor."""
    import uvicorn

    app = make_app(Settings.load())
    uvicorn.run(app, fd=int(sys.argv[1]), log_level="error", access_log=False, loop="uvloop", http="httptools")


if __name__ == "__main__":
    main()
