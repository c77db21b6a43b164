"""Addresses that no hook calls, in every form in which they come."""

import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from token_broker.hooks.addresses import AddressRefusedError, GuardedResolver, is_forbidden, is_forbidden_host

FORBIDDEN = (
    "169.254.169.254", "169.254.0.1", "168.63.129.16", "0.0.0.0", "100.100.100.200", "192.0.0.192", "224.0.0.1",
    "255.255.255.255", "::", "fe80::1", "fe80::1%2", "febf::1", "fd00:ec2::254", "ff02::1", "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe", "::169.254.169.254", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1", "::ffff:168.63.129.16",
)  # fmt: skip
PERMITTED = ("127.0.0.1", "::1", "10.0.0.4", "192.168.1.1", "93.184.216.34", "fd00::1", "2606:2800::1", "168.63.129.17")


class Names(AbstractResolver):
    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=each, port=port, family=family, proto=6, flags=0)
            for each in self.addresses
        ]

    async def close(self) -> None: ...


@pytest.mark.parametrize("address", FORBIDDEN)
def test_address_is_forbidden(address: str) -> None:
    assert is_forbidden(address)


@pytest.mark.parametrize("address", PERMITTED)
def test_address_is_permitted(address: str) -> None:
    assert not is_forbidden(address)


@pytest.mark.parametrize(
    ("host", "forbidden"), [("[fe80::1]", True), ("10.0.0.4", False), ("metadata.internal", False)]
)
def test_host_is_judged_where_it_is_an_address(host: str, *, forbidden: bool) -> None:
    assert is_forbidden_host(host) is forbidden


async def test_resolver_leaves_forbidden_out() -> None:
    found = await GuardedResolver(Names("169.254.169.254", "10.0.0.4", "fe80::1")).resolve("x.example.com", 443)
    assert [address["host"] for address in found] == ["10.0.0.4"]


async def test_name_with_forbidden_addresses_only() -> None:
    with pytest.raises(AddressRefusedError):
        await GuardedResolver(Names("169.254.169.254", "::ffff:168.63.129.16")).resolve("x.example.com", 443)
