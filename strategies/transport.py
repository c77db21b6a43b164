"""What mints go through: httpx's transport interface over aiohttp's connections, which scale; and whom TLS believes.

Name lookups have threads of their own, since they can hang.
"""

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport

__all__ = ["BoundedResolver", "make_tls_context", "make_transport"]

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


def make_tls_context() -> ssl.SSLContext:
    """Whom all our TLS connections believe: the system's authorities, or those that SSL_CERT_FILE or SSL_CERT_DIR name.

    Only where neither is set and the system has none at all, as in a bare container, are they certifi's. Reading them
    takes tens of milliseconds: make one context a process and hand it on.
    """
    if _authorities_are_there():
        return ssl.create_default_context()
    return httpx.create_ssl_context(trust_env=False)


def _authorities_are_there() -> bool:
    """Whether OpenSSL has a place to find authorities; one that was named and is wrong counts: it fails closed."""
    paths = ssl.get_default_verify_paths()
    if any(os.environ.get(name) for name in (paths.openssl_cafile_env, paths.openssl_capath_env)):
        return True
    return paths.cafile is not None or (paths.capath is not None and any(os.scandir(paths.capath)))


def make_transport(
    *, tls: ssl.SSLContext | None = None, resolver: AbstractResolver | None = None, connections: int = 256
) -> httpx.AsyncBaseTransport:
    """The process's one transport, made inside the running loop. Time limits are the caller's, over the whole call.

    It follows no redirect, keeps no cookie, decompresses nothing and reads no proxy from the environment.
    """
    trusted = tls or make_tls_context()
    transport = AiohttpTransport(verify=trusted)

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=connections,
            ssl=trusted,
            resolver=resolver or BoundedResolver(),
            ttl_dns_cache=_DNS_CACHE_S,
            keepalive_timeout=_KEEPALIVE_S,
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    transport.client = session
    return transport
