"""The transport of the mints: httpx's interface over aiohttp's connection pool; name lookups; trusted authorities.

What the outbound proxy serves goes through tunnels of the proxy's (strategies/outbound_proxy.py).

Over aiohttp one process mints 2,500 times a second, over httpx's own pool 550 times (docs/decisions/0007).
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

from strategies.outbound_proxy import OutboundProxy

__all__ = ["BoundedResolver", "make_tls_context", "make_transport"]

_MAX_LOOKUPS = 8
_DNS_CACHE_S = 30
_KEEPALIVE_S = 60

Lookup = Callable[..., list[tuple[Any, ...]]]


class BoundedResolver(AbstractResolver):
    """Looks names up in daemon threads, at most `limit` at once.

    `getaddrinfo` can hang for minutes. In the loop's own thread pool it would hold up every other user of the pool, and
    the exit of the process, which joins that pool. Raises OSError for an unknown name, or while `limit` lookups run.
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
            if found.done():  # the caller was cancelled
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
            except RuntimeError:  # the loop was closed in the meantime
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
        """Nothing to close: threads that hang are daemons and end with the process."""


def make_tls_context() -> ssl.SSLContext:
    """The authorities that all TLS connections trust: the system's, or those that SSL_CERT_FILE or SSL_CERT_DIR name.

    certifi's are used only where neither variable is set and the system has none, as in a bare container. Reading them
    takes tens of milliseconds: make one context for the process and pass it on.
    """
    paths = ssl.get_default_verify_paths()
    # A variable that names a wrong path counts as well. Otherwise a spelling mistake would silently trust certifi's.
    are_named = any(os.environ.get(name) for name in (paths.openssl_cafile_env, paths.openssl_capath_env))
    if are_named or paths.cafile is not None or (paths.capath is not None and any(os.scandir(paths.capath))):
        return ssl.create_default_context()
    return httpx.create_ssl_context(trust_env=False)


class _ProxiedTransport(httpx.AsyncBaseTransport):
    """Two transports: one through the proxy, for the hosts that it serves, and one without."""

    def __init__(self, proxy: OutboundProxy, proxied: AiohttpTransport, direct: AiohttpTransport) -> None:
        self._proxy = proxy
        self._proxied = proxied
        self._direct = direct

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._proxy.serves(str(request.url)):
            return await self._direct.handle_async_request(request)
        try:
            return await self._proxied.handle_async_request(request)
        except httpx.HTTPError as error:
            # httpx-aiohttp keeps the error that it maps as the cause; what it maps it to is not the same for all.
            match error.__cause__:
                case aiohttp.ClientHttpProxyError(status=status):
                    raise self._proxy.failure(status) from None
                case aiohttp.ClientProxyConnectionError():
                    raise self._proxy.failure(None) from None
            raise

    async def aclose(self) -> None:
        await self._proxied.aclose()
        await self._direct.aclose()


def make_transport(
    *,
    tls: ssl.SSLContext | None = None,
    resolver: AbstractResolver | None = None,
    connections: int = 256,
    keepalive_s: float = _KEEPALIVE_S,
    proxy: OutboundProxy | None = None,
) -> httpx.AsyncBaseTransport:
    """The process's one transport; call it inside the running loop. It has no time limits: the caller sets them.

    It follows no redirect, keeps no cookie, decompresses nothing and reads no proxy from the environment. Where `proxy`
    fails, ProxyFailedError is raised.
    """
    trusted = tls or make_tls_context()

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=connections,
            ssl=trusted,
            resolver=resolver or BoundedResolver(),
            ttl_dns_cache=_DNS_CACHE_S,
            keepalive_timeout=keepalive_s,
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    direct = AiohttpTransport(verify=trusted, client=session)
    if proxy is None:
        return direct
    way = httpx.Proxy(proxy.url, headers=proxy.headers)
    return _ProxiedTransport(proxy, AiohttpTransport(verify=trusted, client=session, proxy=way), direct)
