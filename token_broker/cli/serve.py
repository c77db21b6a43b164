"""Runs the application under uvicorn, for `serve` and `demo`."""

import gc
import socket
import sys
from collections.abc import Callable, Sequence

import uvicorn
from starlette.routing import BaseRoute

from token_broker.app import create_app
from token_broker.server.drain import Drain, DrainingServer
from token_broker.server.uvicorn_options import uvicorn_options
from token_broker.settings import Settings, SettingsError

__all__ = ["run_server"]

# Requests in progress are no garbage: 32 at once are about 5,000 objects. Looked through every 700 allocations, as
# Python does, they cost 5 % of a turn. One look at so many takes about 3 ms.
_GC_THRESHOLDS = (20_000, 20, 20)
# How long a thread with work waits for the interpreter while the event loop is busy. Python's 5 ms are several times
# what a commit takes, and a commit needs the interpreter more than once.
_SWITCH_INTERVAL_S = 0.001


async def run_server(settings: Settings, *, listening: Callable[[], None], also: Sequence[BaseRoute] = ()) -> None:
    """Serves until SIGTERM or SIGINT, then drains. A second signal stops it at once.

    `listening` is called when the socket is bound. `also` are routes besides the broker's own. Raises SettingsError
    where HOST and PORT can't be bound.
    """
    drain = Drain()
    app = create_app(settings, drain, also)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan="off",  # it is entered below: uvicorn would log a failing start, where the command prints it in a line
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # web/requests.py alone derives client, scheme and host
        timeout_graceful_shutdown=5,
        **uvicorn_options(settings),
    )
    with _listen(settings) as listener:
        async with app.router.lifespan_context(app) as state:
            _tune_interpreter()
            listening()
            await DrainingServer(config, drain, grace_s=settings.drain_s, state=state).serve(sockets=[listener])


def _tune_interpreter() -> None:
    """Sets what belongs to the whole process, and so to no library that is imported by another program."""
    gc.freeze()  # what was built stays: the collector need not look through it again with every few requests
    gc.set_threshold(*_GC_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def _listen(settings: Settings) -> socket.socket:
    """Opens the listening socket. It comes first, so that a taken port is reported as a fault of the configuration."""
    try:
        # asyncio sets TCP_NODELAY on accepted sockets only if the listening socket names TCP as its protocol.
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        where = f"HOST={settings.host} PORT={settings.port}"
        raise SettingsError([f"PORT: {where} can't be listened on: {error.strerror}; name a free one"]) from None
    return listener
