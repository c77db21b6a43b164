"""An HTTP tool that works for a while and says when it had its request, and when it answered.

`python -m benchmarks.relay.timed_tool` prints its port. It speaks just enough HTTP/1.1 over a bare socket that its own
work stays out of the times: a request counts as sent when its last byte is here. The answer is the JSON
`{"received_ns": ..., "answered_ns": ...}`, on the monotonic clock that all processes of a machine share.
"""

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import cast

import httptools
import uvloop

from benchmarks.relay.harness import process

__all__ = ["TOOL_S", "timed_tool"]

TOOL_S = 0.02


class TimedTool(asyncio.Protocol):
    """One connection, which is kept open."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._received_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        self._received_ns = time.monotonic_ns()
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        asyncio.get_running_loop().call_later(TOOL_S, self._answer, self._received_ns)

    def _answer(self, received_ns: int) -> None:
        assert self._transport is not None
        answer = json.dumps({"received_ns": received_ns, "answered_ns": time.monotonic_ns()}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
        self._transport.write(head.encode() + answer)


@contextlib.contextmanager
def timed_tool() -> Iterator[str]:
    """The URL of a tool in a process of its own."""
    with process(sys.executable, "-m", "benchmarks.relay.timed_tool", stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        yield f"http://127.0.0.1:{int(running.stdout.readline())}/tool"


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(TimedTool, "127.0.0.1", 0)
    gc.freeze()
    gc.disable()  # nothing here makes cycles that last
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
