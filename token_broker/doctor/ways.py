"""How a host is reached from here: directly, through the proxy, or only through a proxy that is not used."""

import asyncio
import contextlib
import socket
import ssl
import time
from dataclasses import replace

from aiohttp.abc import AbstractResolver

from strategies.endpoint import is_loopback
from strategies.outbound_proxy import OutboundProxy, ProxyFailedError
from strategies.transport import BoundedResolver
from token_broker.doctor.checks import Check, CheckStatus, KnownIssue
from token_broker.doctor.hosts import STEP_S, Host, examine_host, examine_tls, ms_since
from token_broker.settings import Settings, unused_proxies

__all__ = ["examine_way"]


async def examine_way(
    host: Host, settings: Settings, *, tls: ssl.SSLContext, resolver: AbstractResolver | None = None
) -> list[Check]:
    """The checks of a host, in the way that the broker asks it. The first that fails is the last."""
    resolver = resolver or BoundedResolver()
    if settings.proxy is not None and settings.proxy.serves(host.url):
        return await _examine_tunnel(settings.proxy, host, tls, resolver)
    checks = await examine_host(host, resolver=resolver, tls=tls)
    last = checks[-1]
    if last.status is not CheckStatus.FAILED or is_loopback(host.name) or last.name.startswith("tls"):
        return checks
    remediation = f"{last.remediation}; where a proxy is the only way out, set BROKER_OUTBOUND_PROXY"
    for proxy, what_to_do in unused_proxies(settings):
        with contextlib.suppress(OSError):
            (await _connect(proxy, host, resolver)).close()
            finding = f"{last.finding}; only the proxy {proxy.url} reaches it"
            return [*checks[:-1], replace(last, finding=finding, remediation=what_to_do)]
    return [*checks[:-1], replace(last, remediation=remediation)]


async def _examine_tunnel(
    proxy: OutboundProxy, host: Host, tls: ssl.SSLContext, resolver: AbstractResolver
) -> list[Check]:
    """A check of the tunnel, and one of TLS through it. The proxy looks the host's name up."""
    name = f"proxy {host.name}"
    began_s = time.monotonic()
    try:
        tunnel = await _connect(proxy, host, resolver)
    except TimeoutError:
        remediation = f"check the proxy, and whether it lets {host.name} through"
        finding = f"{proxy.url} opens no way within {STEP_S:g} s"
        hang = KnownIssue.CONNECTION_HANG
        return [Check(name, CheckStatus.FAILED, finding, remediation=remediation, known_issue=hang)]
    except ProxyFailedError as error:
        remediation = (
            "correct BROKER_OUTBOUND_PROXY or HTTPS_PROXY (http://user:password@host:port), and let the proxy take "
            f"CONNECT to {host.name}:{host.port}; a host that is reached without it belongs into NO_PROXY"
        )
        return [Check(name, CheckStatus.FAILED, str(error), ms_since(began_s), remediation)]
    checks = [Check(name, CheckStatus.OK, f"{proxy.url} opens a way", ms_since(began_s))]
    _, writer = await asyncio.open_connection(sock=tunnel)
    try:
        return [*checks, await examine_tls(host, writer, tls, STEP_S)]
    finally:
        writer.transport.abort()


async def _connect(proxy: OutboundProxy, host: Host, resolver: AbstractResolver) -> socket.socket:
    """A socket to the host through the proxy, within one step. Raises TimeoutError or ProxyFailedError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(STEP_S):
        try:
            address = (await resolver.resolve(proxy.host, proxy.port))[0]
            tunnel = socket.socket(address["family"], socket.SOCK_STREAM)
        except OSError:
            raise proxy.failure(None) from None
        try:
            tunnel.setblocking(False)
            await loop.sock_connect(tunnel, (address["host"], address["port"]))
            await proxy.open_tunnel(tunnel, host.name, host.port)
        except ProxyFailedError:
            tunnel.close()
            raise
        except OSError:
            tunnel.close()
            raise proxy.failure(None) from None
        except BaseException:
            tunnel.close()
            raise
    return tunnel
