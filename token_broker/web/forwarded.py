"""Who really asks, and under which name: client address, scheme and host behind trusted proxies.

`client_of` is the one place that reads `X-Forwarded-*`, for HTTP and WebSocket scopes alike; the server itself runs
with its own proxy handling off. Nothing is believed unless BROKER_TRUSTED_PROXIES says so.
"""

import functools
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from starlette.types import Scope

from token_broker.settings import Settings

__all__ = [
    "UNKNOWN_ADDRESS",
    "Client",
    "address_key",
    "asked_host",
    "client_address",
    "client_of",
    "normal_host",
    "public_base",
    "websocket_url",
]

UNKNOWN_ADDRESS = "unknown"
MAX_PROXIES_WALKED = 32

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Scheme = Literal["http", "https"]
_SCHEMES: dict[str, _Scheme] = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_AUTHORITY = re.compile(
    r"(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>\d{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. `address` is an IP address, or `unknown`; `host` the authority asked for, its default port left off."""

    address: str
    scheme: _Scheme
    host: str


@dataclass(frozen=True, slots=True)
class _Trust:
    """BROKER_TRUSTED_PROXIES: so many hops, or these networks; neither trusts nothing."""

    hops: int = 0
    networks: tuple[_Network, ...] = ()

    def includes(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self.networks)


def client_of(scope: Scope, trusted_proxies: tuple[str, ...]) -> Client:
    """The client behind `scope`; `trusted_proxies` as in the settings.

    With hops, that many addresses to the left of the peer's are proxies' words; with networks, addresses are
    followed to the left as long as each one is trusted. What stands further left is the caller's claim, and ignored.
    """
    address, scheme, host = _asked(scope, trusted_proxies)
    host = host or _listening_host(scope, scheme)
    return Client(str(address) if address is not None else UNKNOWN_ADDRESS, scheme, host)


def asked_host(scope: Scope, trusted_proxies: tuple[str, ...]) -> str | None:
    """The host that was asked for, as `client_of` has it, but None where Host is there twice, or names no host.

    Without any Host header it is the address that was connected to.
    """
    _, scheme, host = _asked(scope, trusted_proxies)
    return host if host or _values(scope, b"host") else _listening_host(scope, scheme)


def public_base(scope: Scope, settings: Settings) -> str:
    """What plans' URLs are made from: BROKER_PUBLIC_URL, else the scheme and host asked for; no trailing slash."""
    if settings.public_url is not None:
        return settings.public_url.strip().rstrip("/")
    client = client_of(scope, settings.trusted_proxies)
    return f"{client.scheme}://{client.host}"


def websocket_url(base: str) -> str:
    """The same base for WebSockets: `http` becomes `ws`, `https` `wss`."""
    return f"ws{base.removeprefix('http')}"


def client_address(scope: Scope, trusted_proxies: tuple[str, ...]) -> str:
    """The caller's address alone, as `client_of` finds it."""
    peer = scope["client"][0] if scope.get("client") else None
    if not trusted_proxies:
        return peer or UNKNOWN_ADDRESS
    parsed = _parse_address(peer) if peer else None
    address, _ = _walk(parsed, _listed(scope, b"x-forwarded-for"), _trust(trusted_proxies))
    return str(address) if address is not None else UNKNOWN_ADDRESS


@functools.lru_cache(maxsize=4096)
def address_key(address: str) -> str:
    """What an anonymous caller's rate is counted by: the address, or its /64 where it is IPv6 (one household's)."""
    parsed = _parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((parsed, 64), strict=False))
    return str(parsed) if parsed is not None else UNKNOWN_ADDRESS


def normal_host(authority: str, scheme: str) -> str | None:
    """`authority` as one writes it: in lower case, IPv6 in its short form, without the root's dot and the scheme's
    default port. None where it is no host[:port].
    """
    match = _AUTHORITY.fullmatch(authority.strip())
    if match is None:
        return None
    name, port = match["name"].lower().removesuffix("."), match["port"]
    if name.startswith("["):
        try:
            name = f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            return None
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return name
    return f"{name}:{int(port)}" if int(port) <= 65_535 else None  # noqa: PLR2004


def _asked(scope: Scope, trusted_proxies: tuple[str, ...]) -> tuple[_Address | None, _Scheme, str | None]:
    """Address, scheme and host of the request: trusted proxies' words, else its own. No host: see `asked_host`."""
    trust = _trust(trusted_proxies)
    peer = _parse_address(scope["client"][0]) if scope.get("client") else None
    address, believed = _walk(peer, _listed(scope, b"x-forwarded-for"), trust)
    scheme = _SCHEMES.get(scope["scheme"], "http")
    host = None
    if believed:
        scheme = _SCHEMES.get(_word_of(scope, b"x-forwarded-proto", believed).lower(), scheme)
        host = normal_host(_word_of(scope, b"x-forwarded-host", believed), scheme)
    if host is None and len(values := _values(scope, b"host")) == 1:
        host = normal_host(values[0], scheme)
    return address, scheme, host


@functools.lru_cache(maxsize=16)
def _trust(trusted_proxies: tuple[str, ...]) -> _Trust:
    if len(trusted_proxies) == 1 and trusted_proxies[0].isdecimal():
        return _Trust(hops=int(trusted_proxies[0]))
    return _Trust(networks=tuple(ipaddress.ip_network(item, strict=False) for item in trusted_proxies))


def _walk(peer: _Address | None, chain: Sequence[str], trust: _Trust) -> tuple[_Address | None, int]:
    """The first address, from the right, that is no trusted proxy's; and how many proxies vouch for it."""
    address, walked = peer, 0
    while walked < MAX_PROXIES_WALKED and (walked < trust.hops or trust.includes(address)):
        walked += 1
        if walked > len(chain) or (previous := _parse_address(chain[-walked])) is None:
            break
        address = previous
    return address, walked


@functools.lru_cache(maxsize=4096)
def _parse_address(text: str) -> _Address | None:
    """An address as proxies write it: bare, `1.2.3.4:567`, `[::1]`, `[::1]:567`, with a zone, or IPv4 in IPv6."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _listening_host(scope: Scope, scheme: str) -> str:
    """The address that was connected to, for want of a host."""
    name, port = scope.get("server") or ("localhost", None)
    name = f"[{name}]" if ":" in name else name
    return normal_host(f"{name}:{port}" if port else name, scheme) or "localhost"


def _word_of(scope: Scope, name: bytes, proxies: int) -> str:
    """What the outermost of `proxies` trusted ones said; they append, so it is that far from the right."""
    words = _listed(scope, name)
    return words[-min(proxies, len(words))] if words else ""


def _listed(scope: Scope, name: bytes) -> list[str]:
    """A list header's items, over all its lines."""
    return [item.strip() for value in _values(scope, name) for item in value.split(",")]


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]
