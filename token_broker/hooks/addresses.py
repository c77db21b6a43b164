"""The addresses that no hook ever calls: link-local ones, and those where clouds tell a machine its own credentials."""

import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address

from aiohttp.abc import AbstractResolver, ResolveResult

__all__ = ["AddressRefusedError", "GuardedResolver", "is_forbidden", "is_forbidden_host"]

_FORBIDDEN = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",  # "this host": Linux takes it for loopback
            "169.254.0.0/16",  # link-local; 169.254.169.254 is the metadata service of most clouds
            "168.63.129.16/32",  # Azure's own service to its machines
            "100.100.100.200/32",  # the metadata service of Alibaba's cloud
            "192.0.0.192/32",  # the metadata service of Oracle's cloud
            "224.0.0.0/4",
            "255.255.255.255/32",
            "::/128",
            "fe80::/10",
            "fd00:ec2::/32",  # the metadata service of Amazon's cloud, fd00:ec2::254, and what stands beside it
            "ff00::/8",
        ),
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefusedError(OSError):
    """A host has no address but forbidden ones."""


class GuardedResolver(AbstractResolver):
    """Looks names up with `inner`, and leaves out the addresses that no hook calls.

    What it returns is what the connection is made to, so a name that is answered differently the next time gains
    nothing. Raises AddressRefusedError where no address is left.
    """

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        permitted = [address for address in found if not is_forbidden(address["host"])]
        if found and not permitted:
            raise AddressRefusedError("the host's address is link-local, or that of a metadata service")
        return permitted

    async def close(self) -> None:
        await self._inner.close()


def is_forbidden_host(host: str) -> bool:
    """Whether the host of a URL is itself a forbidden address. A name is judged when it has been looked up."""
    try:
        return is_forbidden(host.strip("[]"))
    except ValueError:
        return False


def is_forbidden(address: str) -> bool:
    """Whether a numeric address must not be called, in whatever form of IPv6 an IPv4 address comes.

    Raises ValueError for what is no address.
    """
    parsed = ipaddress.ip_address(address)
    forms: list[IPv4Address | IPv6Address | None] = [parsed]
    if isinstance(parsed, IPv6Address):  # without its zone, and the IPv4 address that it may carry
        bare = IPv6Address(int(parsed))
        last = IPv4Address(int(bare) & 0xFFFFFFFF)
        is_compatible = 1 < int(bare) < 1 << 32  # ::a.b.c.d, which is out of use; not ::1
        forms = [bare, bare.ipv4_mapped, bare.sixtofour, last if bare in _NAT64 or is_compatible else None]
    return any(form in network for form in forms if form for network in _FORBIDDEN if form.version == network.version)
