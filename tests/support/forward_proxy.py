"""The only way out of a closed network: a forward proxy on loopback, which opens tunnels by name."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.sockets import listening_socket

__all__ = ["LOGIN", "ForwardProxy", "run_forward_proxy"]

LOGIN = "user:canary-pässword@1"
QUOTED_LOGIN = "user:canary-p%C3%A4ssword%401"


@dataclass
class ForwardProxy:
    """Opens tunnels to `hosts`, by name. `asked` has each CONNECT's authority; what it is not told to do, it refuses.

    `answer` is sent in place of a tunnel; `hangs` sends nothing.
    """

    hosts: Mapping[str, int]
    login: str | None = None
    answer: bytes | None = None
    hangs: bool = False
    port: int = 0
    asked: list[str] = field(default_factory=list)
    _serving: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url_with_login(self) -> str:
        return f"http://{QUOTED_LOGIN}@127.0.0.1:{self.port}"

    def refusal(self, head: str) -> bytes | None:
        """The answer to a request for a tunnel; None where it is opened."""
        if self.answer is not None:
            return self.answer
        request, *headers = head.split("\r\n")
        method, authority, _ = request.split(" ", 2)
        given = {name.lower(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
        wanted = base64.b64encode((self.login or "").encode()).decode()
        if self.login is not None and given.get("proxy-authorization") != f"Basic {wanted}":
            return b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
        if method != "CONNECT" or authority.rpartition(":")[0] not in self.hosts:
            return b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        return None

    async def stop(self) -> None:
        """Cuts the tunnels that are open: else a connection is left for whatever runs next to complain about."""
        for writer in self._serving.values():
            writer.transport.abort()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        task.add_done_callback(self._serving.pop)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.asked.append(head.split(" ", 2)[1])
            if self.hangs:
                await reader.read()
                return
            if (refusal := self.refusal(head)) is not None:
                writer.write(refusal)
                await writer.drain()
                return
            beyond, outwards = await asyncio.open_connection("127.0.0.1", self.hosts[self.asked[-1].rpartition(":")[0]])
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pass_on(reader, outwards))
                    group.create_task(_pass_on(beyond, writer))
            finally:
                outwards.transport.abort()
        except (OSError, asyncio.IncompleteReadError, ExceptionGroup):
            pass  # one of the two went away
        finally:
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while received := await reader.read(65_536):
        writer.write(received)
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def run_forward_proxy(hosts: Mapping[str, int] | None = None, **options: Any) -> AsyncIterator[ForwardProxy]:
    """The proxy until the block ends: `hosts` are names, and the ports of loopback that are behind them."""
    proxy = ForwardProxy(hosts or {}, **options)
    with listening_socket() as listener:
        proxy.port = listener.getsockname()[1]
        async with await asyncio.start_server(proxy.serve, sock=listener):
            yield proxy
        await proxy.stop()
