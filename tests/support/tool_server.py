"""A server of an operator's tools. Its path says how a call ends, and it keeps every call that it gets."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ToolServer", "run_tool_server"]


@dataclass(slots=True)
class ToolServer:
    """`/ok` answers at once, `/held` once `release` is called, `/fail` with a 500, `/moved` with a redirect to `/ok`,
    `/big` with a megabyte; `/die` closes in mid-answer, and `/hang` never answers. Nothing waits for longer than the
    caller does.
    """

    port: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)
    _came: asyncio.Event = field(default_factory=asyncio.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def release(self) -> None:
        """Lets the held calls end."""
        self._released.set()

    async def called(self, times: int = 1) -> list[dict[str, Any]]:
        """The calls, once there are so many."""
        async with asyncio.timeout(15):
            while len(self.calls) < times:
                self._came.clear()
                await self._came.wait()
        return self.calls

    async def answer(self, path: str, call: dict[str, Any], gone: "asyncio.Task[bytes]") -> bytes:
        """The whole answer. `gone` ends when the caller closes."""
        self.calls.append(call)
        self._came.set()
        if path in {"/held", "/hang"}:
            released = asyncio.create_task(self._released.wait())
            await asyncio.wait([gone] if path == "/hang" else [gone, released], return_when=asyncio.FIRST_COMPLETED)
            released.cancel()
        if path == "/die":
            return b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"
        body = json.dumps({"ran": call["tool"], "arguments": call["arguments"]}).encode()
        body = b"x" * 1_000_000 if path == "/big" else body
        status = {"/fail": "500 Internal Server Error", "/moved": f"307 Moved\r\nlocation: {self.url('ok')}"}
        head = f"HTTP/1.1 {status.get(path, '200 OK')}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body


@contextlib.asynccontextmanager
async def run_tool_server() -> AsyncIterator[ToolServer]:
    """A server on loopback, until the block ends."""
    server = ToolServer()
    running: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r")[0])
            call = json.loads(await reader.readexactly(length))
            gone = asyncio.create_task(reader.read())
            try:
                writer.write(await server.answer(head.split()[1], call, gone))
                await writer.drain()
            finally:
                gone.cancel()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the caller has gone, or the test is over
        finally:
            running.discard(task)
            writer.close()

    listener = await asyncio.start_server(converse, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
