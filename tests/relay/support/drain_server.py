"""A broker of its own process, for SIGTERM: `python -m tests.relay.support.drain_server <azure url> <loop> <grace s>`.

Prints a line a fact as JSON: the port, then, when it has gone, what became of its talks and turns.
"""

import asyncio
import json
import sys

import uvicorn
import uvloop

from tests.relay.support.broker import application, build, make_settings
from token_broker.server.drain import DrainingServer
from token_broker.server.uvicorn_options import uvicorn_options


async def main(azure_url: str, grace_s: float) -> None:
    running = build(make_settings(azure_url, drain_s=grace_s, max_sessions=0))
    config = uvicorn.Config(
        application(running.relay),
        port=0,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=5,
        **uvicorn_options(running.settings),
    )
    server = DrainingServer(config, running.drain, grace_s=grace_s)

    async def tell_port() -> None:
        while not server.started:  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(0.01)
        say(port=server.servers[0].sockets[0].getsockname()[1])

    telling = asyncio.create_task(tell_port())
    await server._serve()
    await telling
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    say(
        turns=len(running.ingest.turns),
        interrupted=sum(turn.interrupted for turn in running.ingest.turns),
        closes=running.relay.snapshot().closes,
        tasks=len(others),
    )


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201


if __name__ == "__main__":
    import signal

    # `Server.serve` would raise the signal once more after all is done, and with it hide the facts.
    original = DrainingServer._serve

    async def serve_with_signals(self: DrainingServer, sockets: None = None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        await original(self, sockets)

    DrainingServer._serve = serve_with_signals  # type: ignore[assignment,method-assign]
    work = main(sys.argv[1], float(sys.argv[3]))
    (uvloop.run if sys.argv[2] == "uvloop" else asyncio.run)(work)
