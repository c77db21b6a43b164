"""The strategy that cannot fail: the broker's own WebSocket proxy carries the talk."""

from strategies.base import ProxyGrant, SessionSpec
from strategies.endpoint import Target

__all__ = ["WebSocketProxy"]


class WebSocketProxy:
    """Grants the proxy, at once and always."""

    name = "websocket_proxy"

    @staticmethod
    def applies(target: Target) -> bool:
        """Wherever there is an endpoint to carry the talk to."""
        return bool(target.base)

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> ProxyGrant:
        """Asks nobody; needs no spec and no time."""
        del spec, timeout_s
        return ProxyGrant()
