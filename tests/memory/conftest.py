"""Stores and helpers for the memory's tests: each runs on SQLite and on PostgreSQL unless it says otherwise."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.memory.support.stores import opened
from tests.memory.support.zep import KEY, Zep, running_zep
from tests.support import broker
from tests.support.databases import PostgresServer, sqlite_url
from token_broker.memory.drivers.connect import connect
from token_broker.memory.drivers.database import Database
from token_broker.settings import Settings

MakeSettings = Callable[..., Settings]


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    async with server.lend() as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open, empty store."""
    async with opened(connect(SecretStr(database_url), timeout_s=10, patience_s=5)) as database:
        yield database


@pytest.fixture
def make_settings(database_url: str) -> MakeSettings:
    """Settings for this test's store; keyword arguments are fields of `Settings`."""

    def make(**fields: Any) -> Settings:
        ours = {"database_url": SecretStr(database_url), "signing_keys": "k" * 40, "delivery_poll_s": 0.05}
        return broker.make_settings(None, None, **(ours | fields))

    return make


@pytest.fixture
async def zep() -> AsyncIterator[Zep]:
    async with running_zep() as running:
        yield running


@pytest.fixture
def zep_settings(make_settings: MakeSettings, zep: Zep) -> MakeSettings:
    """The same, with Zep for a sink."""

    def make(**fields: Any) -> Settings:
        return make_settings(**{"zep_api_key": SecretStr(KEY), "zep_api_url": zep.base_url, **fields})

    return make
