"""Where a request came from, as the broker's own clients see it."""

from starlette.types import Scope

from token_broker.settings import Settings

__all__ = ["public_base"]


def public_base(scope: Scope, settings: Settings) -> str:
    """The broker's scheme and host as the browser sees them."""
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    return settings.public_url or f"{scope['scheme']}://{host}"
