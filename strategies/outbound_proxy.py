"""The HTTP proxy that leads out of a closed network: which hosts it serves, and the tunnels through it.

Loopback hosts are never asked through it, and neither is plain http: all that the broker asks on other hosts is https.
"""

import asyncio
import base64
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from pydantic import SecretStr

from strategies.endpoint import is_loopback

__all__ = ["InvalidProxyError", "OutboundProxy", "ProxyFailedError", "parse_proxy"]

_MAX_ANSWER_BYTES = 16_384
_PORT = re.compile(r":(\d{1,5})$")
_OK = 200
_WANTS_CREDENTIALS = 407


class InvalidProxyError(ValueError):
    """The proxy's URL is invalid. The message never repeats credentials."""


class ProxyFailedError(OSError):
    """The proxy opened no way to a host. The message names the proxy, without its credentials."""


@dataclass(frozen=True, slots=True)
class OutboundProxy:
    """An HTTP proxy. `login` is `user:password`; `bypassed` has the entries of `NO_PROXY`."""

    host: str
    port: int
    login: SecretStr | None = None
    bypassed: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Its URL without the login, as logs and errors show it."""
        return f"http://{_bracketed(self.host)}:{self.port}"

    @property
    def full_url(self) -> SecretStr:
        """Its URL with the login, for libraries that take nothing else."""
        if self.login is None:
            return SecretStr(self.url)
        user, _, password = self.login.get_secret_value().partition(":")
        return SecretStr(f"http://{quote(user, safe='')}:{quote(password, safe='')}@{self.url.removeprefix('http://')}")

    @property
    def headers(self) -> dict[str, str]:
        """What it is told besides the host that is wanted."""
        if self.login is None:
            return {}
        return {"Proxy-Authorization": f"Basic {base64.b64encode(self.login.get_secret_value().encode()).decode()}"}

    def serves(self, url: str) -> bool:
        """Whether `url` is asked through it: https or wss, not on loopback, and not among those bypassed."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        if parts.scheme not in {"https", "wss"} or is_loopback(host):
            return False
        return not any(_covers(entry, host, parts.port or 443) for entry in self.bypassed)

    def failure(self, status: int | None) -> ProxyFailedError:
        """Why there is no tunnel. `status` is the proxy's answer, None where it was not reached."""
        if status is None:
            return ProxyFailedError(f"the proxy {self.url} can't be reached")
        if status == _WANTS_CREDENTIALS:
            refused = "refuses its user or password" if self.login else "asks for a user and a password"
            return ProxyFailedError(f"the proxy {self.url} {refused} (HTTP 407)")
        return ProxyFailedError(f"the proxy {self.url} opens no way to the host (HTTP {status})")

    async def open_tunnel(self, connected: socket.socket, host: str, port: int) -> None:
        """Asks for a tunnel to `host`, by name, on a socket that is connected to the proxy. Raises ProxyFailedError.

        The caller bounds the time, and closes the socket if this fails. Not a byte behind the answer's head is read:
        it would be the host's.
        """
        loop = asyncio.get_running_loop()
        authority = f"{_bracketed(host)}:{port}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        answer = b""
        try:
            await loop.sock_sendall(connected, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            while b"\r\n\r\n" not in answer and len(answer) < _MAX_ANSWER_BYTES:
                # In TLS the client speaks first, so nothing of the host's can have come.
                if not (received := await loop.sock_recv(connected, _MAX_ANSWER_BYTES - len(answer))):
                    break
                answer += received
        except OSError:
            raise self.failure(None) from None
        status = re.match(rb"HTTP/1\.\d (\d{3})[ \r]", answer)
        if status is None or b"\r\n\r\n" not in answer:
            raise ProxyFailedError(f"the proxy {self.url} answers as no HTTP proxy does")
        if int(status[1]) != _OK:
            raise self.failure(int(status[1]))


def parse_proxy(url: str, *, bypassed: Sequence[str] = ()) -> OutboundProxy:
    """The proxy at `url`: `http://host:port` or `host:port`, with `user:password@` where it asks for them.

    Raises InvalidProxyError. A proxy that is itself reached by TLS is refused, and so is SOCKS.
    """
    text = url.strip()
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise InvalidProxyError("is not a URL; it looks like http://proxy.example.com:3128") from None
    if parts.scheme in {"https", "socks", "socks4", "socks4a", "socks5", "socks5h"}:
        raise InvalidProxyError(
            f"names a proxy that is spoken to by {parts.scheme}; the broker speaks plain HTTP to its proxy, as most "
            "take it: http://proxy.example.com:3128"
        )
    if parts.scheme != "http" or not parts.hostname or port == 0 or any(c.isspace() for c in text):
        raise InvalidProxyError("is not the URL of a proxy; it looks like http://proxy.example.com:3128")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidProxyError("must not carry a path, a query or a fragment")
    login = None
    if parts.username is not None:
        login = SecretStr(f"{unquote(parts.username)}:{unquote(parts.password or '')}")
    return OutboundProxy(parts.hostname, port or 80, login, tuple(bypassed))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _covers(entry: str, host: str, port: int) -> bool:
    """Whether an entry of `NO_PROXY` means the host: `*`, a name and all below it, an address, a CIDR; with a port."""
    if entry == "*":
        return True
    is_bare_ipv6 = entry.count(":") > 1 and not entry.startswith("[")
    if not is_bare_ipv6 and (named_port := _PORT.search(entry)) is not None:
        if int(named_port[1]) != port:
            return False
        entry = entry[: named_port.start()]
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:  # one of the two is a name
        name = entry.lower().removeprefix("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
