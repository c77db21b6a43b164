"""Load on a broker over bare sockets, and what it costs the broker's process."""

import asyncio
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

__all__ = ["cpu_s", "load", "until_it_answers"]


class Connection(asyncio.Protocol):
    """Sends one prepared request after the other, and times each answer."""

    def __init__(self, requests: Iterator[bytes], latencies: list[float]) -> None:
        self._requests, self._latencies = requests, latencies
        self._buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.until_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found or len(rest) < int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
            self.done.set_exception(RuntimeError(self._buffer.decode()))
            self._transport.close()
            return
        self._buffer = b""
        self._latencies.append(time.perf_counter() - self._sent_s)
        if time.perf_counter() < self.until_s:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)


async def load(port: int, requests: Iterator[bytes], *, connections: int, seconds: float) -> tuple[list[float], float]:
    """Latencies in seconds, and how long it took."""
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    began_s = time.perf_counter()
    opened = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(partial(Connection, requests, latencies), "127.0.0.1", port)
        protocol.until_s = began_s + seconds
        opened.append(protocol)
    await asyncio.gather(*(protocol.done for protocol in opened))
    return latencies, time.perf_counter() - began_s


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until_it_answers(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
