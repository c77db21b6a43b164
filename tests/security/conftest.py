"""Fixtures of the security tests: an Entra tenant that signs, and its keys."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.security.fakes import Key, Tenant
from tests.support.broker import plain_client
from tests.support.serving import serve_app


@pytest.fixture(scope="session")
def first_key() -> Key:
    return Key.make("first")


@pytest.fixture(scope="session")
def second_key() -> Key:
    return Key.make("second")


@pytest.fixture
async def tenant(first_key: Key) -> AsyncIterator[Tenant]:
    tenant = Tenant(first_key, keys=[first_key.jwk()])
    async with serve_app(tenant) as base_url:
        tenant.base_url = base_url
        yield tenant


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with plain_client() as client:
        yield client
