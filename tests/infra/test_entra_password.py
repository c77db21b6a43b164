"""PostgreSQL opened with a token for a password, as `infra/modules/database.bicep` has it: a real server checks it."""

import time
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from strategies.credentials import AccessToken
from strategies.errors import CredentialError
from tests.support.databases import PostgresServer
from token_broker.memory.drivers.connect import connect
from token_broker.memory.drivers.entra_password import EntraPassword, NoEntraPasswordError, wants_entra_password
from token_broker.memory.drivers.postgres import PostgresDatabase

USER = "id-broker"


class Tokens:
    """A source whose next token, and its life, the test sets."""

    def __init__(self) -> None:
        self.token, self.life_s = "first-token", 3600.0
        self.fetched = 0
        self.broken = False

    async def fetch(self) -> AccessToken:
        self.fetched += 1
        if self.broken:
            raise CredentialError("no managed identity")
        return AccessToken(SecretStr(self.token), time.time() + self.life_s)

    async def aclose(self) -> None:
        pass


@pytest.fixture(scope="session")
def server(postgres: PostgresServer) -> PostgresServer:
    """A PostgreSQL that asks USER for a password and takes one alone."""
    postgres.add_user(USER, "first-token")
    return postgres


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
async def password(tokens: Tokens) -> AsyncIterator[EntraPassword]:
    made = EntraPassword(SecretStr("postgresql+asyncpg://"), client_id=None, timeout_s=2, source=tokens)
    yield made
    await made.aclose()


@pytest.fixture
async def engine(server: PostgresServer, password: EntraPassword) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(
        server.url("postgres").replace("postgres@", f"{USER}@"),
        poolclass=NullPool,
        connect_args={"password": password.get},
    )
    yield made
    await made.dispose()


async def whoami(engine: AsyncEngine) -> object:
    async with engine.connect() as connection:
        return (await connection.execute(text("SELECT current_user"))).scalar_one()


async def test_token_opens_a_connection(engine: AsyncEngine, tokens: Tokens) -> None:
    assert await whoami(engine) == USER
    assert await whoami(engine) == USER
    assert tokens.fetched == 1


async def test_wrong_token_is_refused(engine: AsyncEngine, tokens: Tokens) -> None:
    tokens.token = "someone-else's"
    with pytest.raises(DBAPIError, match="password authentication failed"):
        await whoami(engine)


async def test_expiring_token_is_renewed(engine: AsyncEngine, tokens: Tokens) -> None:
    tokens.life_s = 1
    assert await whoami(engine) == USER
    tokens.life_s = 3600
    assert await whoami(engine) == USER
    assert tokens.fetched == 2


async def test_missing_token_means_store_away(engine: AsyncEngine, tokens: Tokens) -> None:
    tokens.broken = True
    with pytest.raises(NoEntraPasswordError, match="Entra"):
        await whoami(engine)


@pytest.mark.filterwarnings("ignore:The Column.copy")  # Alembic's own, on making the tables
async def test_store_opens_with_the_token(server: PostgresServer, password: EntraPassword) -> None:
    connection = await server.connect(server.url("postgres"))
    await connection.execute(f'CREATE DATABASE turns OWNER "{USER}"')
    await connection.close()
    url = server.url("turns").replace("postgres@", f"{USER}@")
    store = PostgresDatabase(url, timeout_s=10, password=password)
    await store.open()
    tables = await store.read(lambda connection: connection.execute(text("SELECT count(*) FROM turns")).scalar_one())
    await store.close()
    assert tables == 0


@pytest.mark.parametrize(
    ("domain", "scope", "authority"),
    [
        ("azure.com", "https://ossrdbms-aad.database.windows.net/.default", None),
        (
            "usgovcloudapi.net",
            "https://ossrdbms-aad.database.usgovcloudapi.net/.default",
            "https://login.microsoftonline.us",
        ),
        (
            "chinacloudapi.cn",
            "https://ossrdbms-aad.database.chinacloudapi.cn/.default",
            "https://login.partner.microsoftonline.cn",
        ),
    ],
)
def test_azure_url_uses_its_clouds_entra(
    domain: str, scope: str, authority: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, str | None, str | None]] = []

    def source(scope: str, *, client_id: str | None, authority: str | None, proxy: object) -> Tokens:
        made.append((scope, client_id, authority))
        return Tokens()

    monkeypatch.setattr("token_broker.memory.drivers.entra_password.azure_identity_source", source)
    host = f"psql-x.postgres.database.{domain}"
    connect(SecretStr(f"postgresql+asyncpg://id-x@{host}/turns"), timeout_s=1, patience_s=1, client_id="client")
    connect(SecretStr(f"postgresql+asyncpg://id-x:own@{host}/turns"), timeout_s=1, patience_s=1, client_id="client")
    assert made == [(scope, "client", authority)]


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql+asyncpg://id-x@psql-x.postgres.database.azure.com:5432/token_broker?ssl=verify-full", True),
        ("postgresql+asyncpg://id-x:secret@psql-x.postgres.database.azure.com/token_broker", False),
        ("postgresql+asyncpg://psql-x.postgres.database.azure.com/token_broker", False),
        ("postgresql+asyncpg://broker@db.internal/token_broker", False),
        ("postgresql+asyncpg://id-x@psql-x.postgres.database.usgovcloudapi.net/token_broker", True),
        ("postgresql+asyncpg://id-x@psql-x.postgres.database.chinacloudapi.cn/token_broker", True),
        ("postgresql+asyncpg://id-x@psql-x.mysql.database.usgovcloudapi.net/token_broker", False),
        ("postgresql+asyncpg://broker@postgres.database.azure.com.example.org/token_broker", False),
        ("postgresql+asyncpg://postgres@/postgres?host=/var/run/postgresql", False),
        ("sqlite+aiosqlite:///var/token-broker.db", False),
    ],
)
def test_url_without_password_means_entra(url: str, wanted: bool) -> None:
    assert wants_entra_password(SecretStr(url)) is wanted
