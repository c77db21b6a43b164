"""Is a host there: its name, a TCP connection, a TLS handshake, each within its own limit."""

import asyncio
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver

from token_broker.doctor.checks import Check, CheckStatus, KnownIssue

__all__ = ["Host", "examine_host"]

STEP_S = 3.0
_CERTIFICATE_SOON_DAYS = 14


@dataclass(frozen=True, slots=True)
class Host:
    """A name and a port; `tls` whether they speak it."""

    name: str
    port: int
    tls: bool

    @classmethod
    def of(cls, url: str) -> "Host":
        parts = urlsplit(url)
        tls = parts.scheme in {"https", "wss"}
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls)


async def examine_host(
    host: Host, *, resolver: AbstractResolver, tls: ssl.SSLContext, step_s: float = STEP_S
) -> list[Check]:
    """A check each for name, connection and TLS; it ends with the first that fails."""
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(step_s):
            addresses = await resolver.resolve(host.name, host.port)
    except (OSError, TimeoutError) as error:
        return [_dns_failed(host, error, step_s)]
    shown = ", ".join(dict.fromkeys(str(address["host"]) for address in addresses))
    checks = [Check(f"dns {host.name}", CheckStatus.OK, shown, _since(began_s))]
    return checks + await _connect(host, str(addresses[0]["host"]), tls, step_s)


async def _connect(host: Host, address: str, tls: ssl.SSLContext, step_s: float) -> list[Check]:
    name = f"tcp {host.name}:{host.port}"
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(step_s):
            _, writer = await asyncio.open_connection(address, host.port)
    except TimeoutError:
        remediation = (
            "a firewall or network rule drops the packets: open this port outwards, or check the private endpoint"
        )
        return [
            Check(
                name,
                CheckStatus.FAILED,
                f"no connection within {step_s:g} s",
                remediation=remediation,
                known_issue=KnownIssue.CONNECTION_HANG,
            )
        ]
    except OSError:
        remediation = "nothing listens there, or it is forbidden: check the endpoint and the network rules"
        return [Check(name, CheckStatus.FAILED, "the connection is refused", _since(began_s), remediation)]
    try:
        connected = Check(name, CheckStatus.OK, "connects", _since(began_s))
        return [connected, await _handshake(host, writer, tls, step_s)] if host.tls else [connected]
    finally:
        writer.transport.abort()


async def _handshake(host: Host, writer: asyncio.StreamWriter, tls: ssl.SSLContext, step_s: float) -> Check:
    name = f"tls {host.name}"
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(step_s):
            await writer.start_tls(tls, server_hostname=host.name)
    except TimeoutError:
        remediation = "something between here and there swallows TLS: look for a firewall or an inspecting proxy"
        return Check(
            name,
            CheckStatus.FAILED,
            f"no handshake within {step_s:g} s",
            remediation=remediation,
            known_issue=KnownIssue.CONNECTION_HANG,
        )
    except ssl.SSLCertVerificationError as error:
        remediation = "check the name; where a proxy inspects TLS, trust its authority (SSL_CERT_FILE)"
        return Check(
            name,
            CheckStatus.FAILED,
            f"the certificate is not believed: {error.verify_message}",
            remediation=remediation,
        )
    except OSError:
        remediation = "what listens there speaks no TLS, or an old one: check scheme and port"
        return Check(name, CheckStatus.FAILED, "the handshake fails", _since(began_s), remediation)
    return judge_certificate(name, writer, _since(began_s))


def judge_certificate(name: str, writer: asyncio.StreamWriter, value: str) -> Check:
    """The handshake went well; does the certificate last?"""
    certificate = writer.get_extra_info("peercert") or {}
    session = writer.get_extra_info("ssl_object")
    left_days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86_400
    finding = f"{session.version()}, the certificate is good for {left_days:.0f} days"
    if left_days < _CERTIFICATE_SOON_DAYS:
        return Check(name, CheckStatus.WARNING, finding, value, "renew the certificate")
    return Check(name, CheckStatus.OK, finding, value)


def _dns_failed(host: Host, error: Exception, step_s: float) -> Check:
    name = f"dns {host.name}"
    if isinstance(error, TimeoutError):
        remediation = "the name server does not answer: check the machine's (or the virtual network's) DNS"
        return Check(
            name,
            CheckStatus.FAILED,
            f"no answer within {step_s:g} s",
            remediation=remediation,
            known_issue=KnownIssue.CONNECTION_HANG,
        )
    remediation = "check the spelling; behind a private endpoint, link its DNS zone to this network"
    return Check(name, CheckStatus.FAILED, "there is no such name", remediation=remediation)


def _since(began_s: float) -> str:
    return f"{(time.monotonic() - began_s) * 1000:.0f} ms"
