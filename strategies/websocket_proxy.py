"""The strategy that cannot fail: the broker's own WebSocket proxy carries the talk."""

from strategies.base import ProxyGrant
from strategies.endpoint import Target

__all__ = ["WebSocketProxy"]


class WebSocketProxy:
    """Grants the proxy, at once and always. It mints nothing: it needs no spec, no time and no breaker."""

    name = "websocket_proxy"

    @staticmethod
    def applies(target: Target) -> bool:
        """Wherever there is an endpoint to carry the talk to."""
        return bool(target.base)

    def grant(self) -> ProxyGrant:
        """The grant that is always there."""
        return ProxyGrant(self.name)
