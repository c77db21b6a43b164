"""Runs the application under uvicorn, as every command does."""

import uvicorn

from token_broker.app import create_app
from token_broker.settings import Settings

__all__ = ["run_server"]


async def run_server(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_max_size=settings.client_message_bytes,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # one function of ours derives client, scheme and host
        timeout_graceful_shutdown=5,
    )
    await uvicorn.Server(config).serve()
