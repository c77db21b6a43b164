"""Runs the application under uvicorn, as every command does."""

import uvicorn

from token_broker.app import create_app
from token_broker.relay.drain import Drain, DrainingServer
from token_broker.relay.serving import uvicorn_options
from token_broker.settings import Settings

__all__ = ["run_server"]


async def run_server(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal stops it at once."""
    drain = Drain()
    config = uvicorn.Config(
        create_app(settings, drain),
        host=settings.host,
        port=settings.port,
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # one function of ours derives client, scheme and host
        timeout_graceful_shutdown=5,
        **uvicorn_options(settings),
    )
    await DrainingServer(config, drain, grace_s=settings.drain_s).serve()
