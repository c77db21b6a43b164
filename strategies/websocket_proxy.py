"""The strategy that never fails: the broker's own WebSocket proxy carries the talk."""

from strategies.base import ProxyGrant
from strategies.endpoint import Target

__all__ = ["WebSocketProxy"]


class WebSocketProxy:
    """Grants the proxy at once and always. It mints nothing, so it needs no spec, no time and no breaker."""

    name = "websocket_proxy"

    @staticmethod
    def applies(target: Target) -> bool:
        """True for every endpoint: the talk needs only somewhere to go."""
        return bool(target.base)

    def grant(self) -> ProxyGrant:
        """The proxy's grant."""
        return ProxyGrant(self.name)
