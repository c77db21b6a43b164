"""Which origins may ask."""

from starlette.types import ASGIApp, Receive, Scope, Send

from token_broker.settings import Settings

__all__ = ["OriginGuard"]


class OriginGuard:
    """Passes what is allowed."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
