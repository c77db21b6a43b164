"""What mints go through: httpx's transport interface over aiohttp's connections, which scale.

Name lookups have threads of their own, since they can hang.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport

__all__ = ["BoundedResolver", "make_transport"]

_MAX_LOOKUPS = 8
_DNS_CACHE_S = 30
_KEEPALIVE_S = 60

Lookup = Callable[..., list[tuple[Any, ...]]]


class BoundedResolver(AbstractResolver):
    """Looks names up in daemon threads, at most `limit` at once: a lookup that hangs holds up nothing, not even exit.

    Raises OSError where a name is unknown, or as many lookups as may be are hanging.
    """

    def __init__(self, *, limit: int = _MAX_LOOKUPS, lookup: Lookup = socket.getaddrinfo) -> None:
        self._limit = limit
        self._lookup = lookup
        self._running = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if self._running >= self._limit:
            raise OSError("as many name lookups as may be are under way")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[tuple[Any, ...]]] = loop.create_future()

        def deliver(addresses: list[tuple[Any, ...]] | None, error: OSError | None) -> None:
            self._running -= 1
            if found.done():  # nobody waits any more
                return
            if addresses is None:
                found.set_exception(error or OSError("no such name"))
            else:
                found.set_result(addresses)

        def look_up() -> None:
            addresses, error = None, None
            try:
                addresses = self._lookup(host, port, type=socket.SOCK_STREAM, family=family)
            except (OSError, UnicodeError) as caught:
                error = caught if isinstance(caught, OSError) else OSError("no such name")
            try:
                loop.call_soon_threadsafe(deliver, addresses, error)
            except RuntimeError:  # the loop has closed meanwhile
                self._running -= 1

        self._running += 1
        threading.Thread(target=look_up, name="name-lookup", daemon=True).start()
        return [
            ResolveResult(
                hostname=host,
                host=address[4][0],
                port=address[4][1],
                family=address[0],
                proto=address[2],
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await found
        ]

    async def close(self) -> None:
        """Nothing to close: threads that still hang end by themselves."""


def make_transport(*, resolver: AbstractResolver | None = None, connections: int = 256) -> httpx.AsyncBaseTransport:
    """The process's one transport, made inside the running loop. Time limits are the caller's, over the whole call.

    It follows no redirect, keeps no cookie, decompresses nothing and reads no proxy from the environment.
    """
    transport = AiohttpTransport()

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=connections,
            ssl=transport.ssl_context,
            resolver=resolver or BoundedResolver(),
            ttl_dns_cache=_DNS_CACHE_S,
            keepalive_timeout=_KEEPALIVE_S,
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    transport.client = session
    return transport
