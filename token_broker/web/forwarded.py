"""Client address, scheme and host of a request, behind trusted proxies.

Only this module reads `X-Forwarded-*`, for HTTP and WebSocket scopes alike; uvicorn's own proxy handling is off.
Nothing in these headers counts unless BROKER_TRUSTED_PROXIES says so.
"""

import functools
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from starlette.types import Scope

__all__ = [
    "UNKNOWN_ADDRESS",
    "ResolvedClient",
    "address_key",
    "asked_host",
    "client_address",
    "client_of",
    "normal_host",
    "public_base",
    "websocket_url",
]

UNKNOWN_ADDRESS = "unknown"
MAX_PROXIES_WALKED = 32  # bounds the cost of a header with thousands of addresses

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Scheme = Literal["http", "https"]
_SCHEMES: dict[str, _Scheme] = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_AUTHORITY = re.compile(
    r"(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>\d{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class ResolvedClient:
    """The client behind a request. `address` is an IP address or `unknown`; `host` has no default port."""

    address: str
    scheme: _Scheme
    host: str


@dataclass(frozen=True, slots=True)
class _TrustedProxies:
    """BROKER_TRUSTED_PROXIES: a number of hops, or networks. Neither trusts nothing."""

    hops: int = 0
    networks: tuple[_Network, ...] = ()

    def includes(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self.networks)


def client_of(scope: Scope, trusted_proxies: tuple[str, ...]) -> ResolvedClient:
    """The client behind `scope`; `trusted_proxies` as in the settings.

    With hops, proxies added that many addresses left of the peer's. With networks, the addresses are followed to the
    left while each is trusted. Everything further left is the caller's own claim, and ignored.
    """
    address, scheme, host = _resolve(scope, trusted_proxies)
    host = host or _listening_host(scope, scheme)
    return ResolvedClient(str(address) if address is not None else UNKNOWN_ADDRESS, scheme, host)


def asked_host(scope: Scope, trusted_proxies: tuple[str, ...]) -> str | None:
    """The requested host, as in `client_of`; None where there are two Host headers, or an invalid one.

    Without a Host header it is the address that was connected to.
    """
    _, scheme, host = _resolve(scope, trusted_proxies)
    return host if host or _values(scope, b"host") else _listening_host(scope, scheme)


def public_base(scope: Scope, public_url: str | None, trusted_proxies: tuple[str, ...]) -> str:
    """The base of URLs in plans: BROKER_PUBLIC_URL, else the requested scheme and host. No trailing slash."""
    if public_url is not None:
        return public_url.strip().rstrip("/")
    client = client_of(scope, trusted_proxies)
    return f"{client.scheme}://{client.host}"


def websocket_url(base: str) -> str:
    """The base for WebSockets: `http` becomes `ws`, `https` becomes `wss`."""
    return f"ws{base.removeprefix('http')}"


def client_address(scope: Scope, trusted_proxies: tuple[str, ...]) -> str:
    """The caller's address only, as in `client_of`."""
    peer = scope["client"][0] if scope.get("client") else None
    if not trusted_proxies:
        return peer or UNKNOWN_ADDRESS
    parsed = _parse_address(peer) if peer else None
    address, _ = _walk(parsed, _listed(scope, b"x-forwarded-for"), _parse_trusted(trusted_proxies))
    return str(address) if address is not None else UNKNOWN_ADDRESS


@functools.lru_cache(maxsize=4096)
def address_key(address: str) -> str:
    """The key of an anonymous caller's rate limit: the address, or the /64 network of an IPv6 address.

    One household has a whole /64, so it could use a new address for each request.
    """
    parsed = _parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((parsed, 64), strict=False))
    return str(parsed) if parsed is not None else UNKNOWN_ADDRESS


def normal_host(authority: str, scheme: str) -> str | None:
    """`authority` in lower case, IPv6 in its short form, without the root's dot and the scheme's default port.

    None where it is not `host` or `host:port`.
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
    # Browsers leave the default port out of Origin and Host, some proxies do not.
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return name
    return f"{name}:{int(port)}" if int(port) <= 65_535 else None  # noqa: PLR2004


def _resolve(scope: Scope, trusted_proxies: tuple[str, ...]) -> tuple[_Address | None, _Scheme, str | None]:
    """Address, scheme and host: those that trusted proxies sent, else the request's own. Host is None if invalid."""
    trusted = _parse_trusted(trusted_proxies)
    peer = _parse_address(scope["client"][0]) if scope.get("client") else None
    address, trusted_hops = _walk(peer, _listed(scope, b"x-forwarded-for"), trusted)
    scheme = _SCHEMES.get(scope["scheme"], "http")
    host = None
    if trusted_hops:
        scheme = _SCHEMES.get(_value_from(scope, b"x-forwarded-proto", trusted_hops).lower(), scheme)
        host = normal_host(_value_from(scope, b"x-forwarded-host", trusted_hops), scheme)
    if host is None and len(values := _values(scope, b"host")) == 1:
        host = normal_host(values[0], scheme)
    return address, scheme, host


@functools.lru_cache(maxsize=16)
def _parse_trusted(trusted_proxies: tuple[str, ...]) -> _TrustedProxies:
    if len(trusted_proxies) == 1 and trusted_proxies[0].isdecimal():
        return _TrustedProxies(hops=int(trusted_proxies[0]))
    return _TrustedProxies(networks=tuple(ipaddress.ip_network(item, strict=False) for item in trusted_proxies))


def _walk(peer: _Address | None, chain: Sequence[str], trusted: _TrustedProxies) -> tuple[_Address | None, int]:
    """The first address from the right that is not a trusted proxy's, and how many proxies are to its right."""
    address, walked = peer, 0
    while walked < MAX_PROXIES_WALKED and (walked < trusted.hops or trusted.includes(address)):
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
    # A dual-stack socket reports IPv4 peers as IPv6, which no IPv4 network would contain.
    return getattr(address, "ipv4_mapped", None) or address


def _listening_host(scope: Scope, scheme: str) -> str:
    """The address that was connected to, as a host."""
    name, port = scope.get("server") or ("localhost", None)
    name = f"[{name}]" if ":" in name else name
    return normal_host(f"{name}:{port}" if port else name, scheme) or "localhost"


def _value_from(scope: Scope, name: bytes, proxies: int) -> str:
    """The value from the outermost of `proxies` trusted ones. Proxies append, so it is that far from the right."""
    values = _listed(scope, name)
    return values[-min(proxies, len(values))] if values else ""


def _listed(scope: Scope, name: bytes) -> list[str]:
    """The items of a list header, over all its lines."""
    return [item.strip() for value in _values(scope, name) for item in value.split(",")]


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]
