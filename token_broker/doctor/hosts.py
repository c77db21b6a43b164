"""Whether a host can be reached: its name, a TCP connection, a TLS handshake, each within its own limit.

And whether Entra gives the keys that callers' tokens are verified with, fetched as the broker does.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from aiohttp.abc import AbstractResolver

from strategies.outbound_proxy import ProxyFailedError
from token_broker.doctor.checks import Check, CheckStatus, KnownIssue
from token_broker.settings import Settings

__all__ = ["STEP_S", "Host", "examine_host", "examine_tenant", "examine_tls", "judge_keys", "ms_since"]

STEP_S = 3.0  # a network that works answers in milliseconds; one that drops packets never does
_CERTIFICATE_SOON_DAYS = 14


@dataclass(frozen=True, slots=True)
class Host:
    """A name and a port; `tls` says whether TLS is spoken there."""

    name: str
    port: int
    tls: bool

    @classmethod
    def of(cls, url: str) -> "Host":
        parts = urlsplit(url)
        tls = parts.scheme in {"https", "wss"}
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{f'[{self.name}]' if ':' in self.name else self.name}:{self.port}"


def ms_since(began_s: float) -> str:
    """The time since `began_s` of the monotonic clock, as reports show it."""
    return f"{(time.monotonic() - began_s) * 1000:.0f} ms"


async def examine_host(
    host: Host, *, resolver: AbstractResolver, tls: ssl.SSLContext, step_s: float = STEP_S
) -> list[Check]:
    """One check each for name, connection and TLS. The first that fails is the last."""
    name = f"dns {host.name}"
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(step_s):
            addresses = await resolver.resolve(host.name, host.port)
    except TimeoutError:  # it is an OSError: this order counts, here and below
        return [_timed_out(name, f"no answer within {step_s:g} s", "check the DNS server of this machine or network")]
    except OSError:
        remediation = "check the spelling; behind a private endpoint, link its DNS zone to this network"
        return [Check(name, CheckStatus.FAILED, "there is no such name", remediation=remediation)]
    shown = ", ".join(dict.fromkeys(str(address["host"]) for address in addresses))
    checks = [Check(name, CheckStatus.OK, shown, ms_since(began_s))]
    return checks + await _examine_port(host, str(addresses[0]["host"]), tls, step_s)


async def _examine_port(host: Host, address: str, tls: ssl.SSLContext, step_s: float) -> list[Check]:
    name = f"tcp {host.name}:{host.port}"
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(step_s):
            _, writer = await asyncio.open_connection(address, host.port)
    except TimeoutError:
        remediation = (
            "a firewall or network rule drops the packets: open this port outwards, or check the private endpoint"
        )
        return [_timed_out(name, f"no connection within {step_s:g} s", remediation)]
    except OSError:
        remediation = "nothing listens there, or a rule forbids it: check the endpoint and the network rules"
        return [Check(name, CheckStatus.FAILED, "the connection is refused", ms_since(began_s), remediation)]
    try:
        connected = Check(name, CheckStatus.OK, "connects", ms_since(began_s))
        return [connected, await examine_tls(host, writer, tls, step_s)] if host.tls else [connected]
    finally:
        writer.transport.abort()  # close() would wait for a TLS shutdown that a broken peer never sends


async def examine_tls(host: Host, writer: asyncio.StreamWriter, tls: ssl.SSLContext, step_s: float) -> Check:
    """Whether the host at the other end speaks TLS with a certificate that is trusted."""
    name = f"tls {host.name}"
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(step_s):
            await writer.start_tls(tls, server_hostname=host.name)
    except TimeoutError:
        remediation = "something on the way swallows TLS: look for a firewall or an inspecting proxy"
        return _timed_out(name, f"no handshake within {step_s:g} s", remediation)
    except ssl.SSLCertVerificationError as error:
        remediation = "check the name; where a proxy inspects TLS, trust its authority (SSL_CERT_FILE)"
        finding = f"the certificate is not trusted: {error.verify_message}"
        return Check(name, CheckStatus.FAILED, finding, remediation=remediation)
    except OSError:
        remediation = "the server speaks no TLS, or an old version: check scheme and port"
        return Check(name, CheckStatus.FAILED, "the handshake fails", ms_since(began_s), remediation)
    certificate = writer.get_extra_info("peercert") or {}
    session = writer.get_extra_info("ssl_object")
    left_days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86_400
    finding = f"{session.version()}, the certificate is valid for {left_days:.0f} days"
    if left_days < _CERTIFICATE_SOON_DAYS:
        return Check(name, CheckStatus.WARNING, finding, ms_since(began_s), "renew the certificate")
    return Check(name, CheckStatus.OK, finding, ms_since(began_s))


def _timed_out(name: str, finding: str, remediation: str) -> Check:
    return Check(name, CheckStatus.FAILED, finding, remediation=remediation, known_issue=KnownIssue.CONNECTION_HANG)


async def examine_tenant(settings: Settings, client: httpx.AsyncClient) -> Check | None:
    """Asks Entra for the tenant's keys. None where callers sign in otherwise."""
    if settings.auth != "entra":
        return None
    url = f"{settings.callers_authority}/{settings.entra_tenant_id}/discovery/v2.0/keys"
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(STEP_S), client.stream("GET", url) as answer:
            return judge_keys(answer.status_code, ms_since(began_s))
    except (httpx.HTTPError, OSError, TimeoutError) as error:
        silent = f"{settings.callers_authority} does not answer"
        finding = str(error) if isinstance(error, ProxyFailedError) else silent
        remediation = (
            "let the broker reach Entra, through BROKER_OUTBOUND_PROXY if need be, and check BROKER_ENTRA_AUTHORITY"
        )
        return Check("tenant", CheckStatus.FAILED, finding, ms_since(began_s), remediation)


def judge_keys(status: int, value: str) -> Check:
    """What Entra's status for the tenant's keys means."""
    name = "tenant"
    if status == 200:  # noqa: PLR2004
        return Check(name, CheckStatus.OK, "its keys, which callers' tokens are verified with, are there", value)
    if status in {400, 404}:
        remediation = (
            "correct BROKER_ENTRA_TENANT_ID (az account show prints it), or BROKER_ENTRA_AUTHORITY for its cloud"
        )
        return Check(name, CheckStatus.FAILED, "Entra knows no such tenant", f"HTTP {status}", remediation)
    return Check(
        name, CheckStatus.FAILED, "Entra gives no keys", f"HTTP {status}", "try again; then look at its status"
    )
