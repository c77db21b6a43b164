"""What the broker asks of uvicorn beyond its defaults, for HTTP and for WebSockets."""

from typing import Any

from token_broker.server.http_protocol import bounded_http
from token_broker.server.websocket_protocol import bounded_websocket
from token_broker.settings import Settings

__all__ = ["uvicorn_options"]


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Options of `uvicorn.Config`, by name."""
    return {
        "http": bounded_http(head_timeout_s=settings.head_timeout_s, write_timeout_s=settings.client_write_timeout_s),
        "timeout_keep_alive": settings.keep_alive_s,
        "ws": bounded_websocket(
            frames_per_second=settings.frames_per_second,
            control_frames_per_second=settings.control_frames_per_second,
            write_timeout_s=settings.client_write_timeout_s,
            image_bytes=settings.image_bytes,
        ),
        "ws_max_size": settings.client_message_bytes,
        "ws_ping_interval": settings.ping_interval_s,
        "ws_ping_timeout": settings.ping_interval_s,
        "ws_per_message_deflate": False,
    }
