"""Doctor's checks of the database and of Zep."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from tests.doctor.support import settings_for
from tests.memory.support.zep import KEY as ZEP_KEY
from tests.memory.support.zep import running_zep
from tests.support.databases import PostgresServer
from token_broker.doctor.checks import CheckStatus
from token_broker.doctor.stores import examine_database, examine_zep, judge_revision, judge_zep
from token_broker.memory.store.tables import SCHEMA_REVISION


def sqlite(path: Path) -> SecretStr:
    return SecretStr(f"sqlite+aiosqlite:///{path}")


async def test_missing_sqlite_file_is_fine(tmp_path: Path) -> None:
    check = await examine_database(settings_for(None, database_url=sqlite(tmp_path / "var" / "x.db")))
    assert check.status is CheckStatus.OK
    assert not (tmp_path / "var").exists()


async def test_sqlite_revision_is_read_only(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", [SCHEMA_REVISION])
    connection.close()
    before = path.read_bytes()
    check = await examine_database(settings_for(None, database_url=sqlite(path)))
    assert (check.status, f"revision {SCHEMA_REVISION}" in check.finding) == (CheckStatus.OK, True)
    assert path.read_bytes() == before


async def test_empty_sqlite_file_is_fine(tmp_path: Path) -> None:
    (tmp_path / "x.db").touch()
    assert (await examine_database(settings_for(None, database_url=sqlite(tmp_path / "x.db")))).status is CheckStatus.OK


async def test_damaged_sqlite_file_fails(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 1000)
    check = await examine_database(settings_for(None, database_url=sqlite(tmp_path / "x.db")))
    assert (check.status, "backup" in check.remediation) == (CheckStatus.FAILED, True)


async def test_folder_instead_of_a_file_fails(tmp_path: Path) -> None:
    check = await examine_database(settings_for(None, database_url=sqlite(tmp_path)))
    assert check.status is CheckStatus.FAILED


async def test_postgresql_revision_is_read(postgres: PostgresServer) -> None:
    url = await postgres.create()
    settings = settings_for(None, database_url=SecretStr(url))
    empty = await examine_database(settings)
    connection = await postgres.connect(url)
    await connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    await connection.execute("INSERT INTO alembic_version VALUES ($1)", SCHEMA_REVISION)
    await connection.close()
    full = await examine_database(settings)
    assert (empty.status, full.status) == (CheckStatus.OK, CheckStatus.OK)
    assert ("empty" in empty.finding, f"revision {SCHEMA_REVISION}" in full.finding) == (True, True)


async def test_missing_postgresql_database_fails(postgres: PostgresServer) -> None:
    check = await examine_database(settings_for(None, database_url=SecretStr(postgres.url("absent"))))
    assert (check.status, "has no such database" in check.finding) == (CheckStatus.FAILED, True)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (SCHEMA_REVISION, CheckStatus.OK),
        ("0000", CheckStatus.NOTE),
        ("9999", CheckStatus.FAILED),
        (None, CheckStatus.OK),
    ],
)
def test_revision_is_judged(found: str | None, status: CheckStatus) -> None:
    assert judge_revision(found, "1 ms", "PostgreSQL").status is status


async def test_unreached_postgresql_hides_its_password() -> None:
    url = SecretStr("postgresql+asyncpg://user:canary-password@127.0.0.1:1/db")
    check = await examine_database(settings_for(None, database_url=url))
    assert (check.status, "not reached" in check.finding) == (CheckStatus.FAILED, True)
    assert "canary" not in str(check)


@pytest.fixture
async def nowhere() -> AsyncIterator[httpx.AsyncClient]:
    """A client whose every request fails."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no", request=request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(fail)) as client:
        yield client


async def test_unused_zep_is_not_asked(nowhere: httpx.AsyncClient) -> None:
    assert await examine_zep(settings_for(None), nowhere) is None


async def test_silent_zep_fails_and_hides_its_key(nowhere: httpx.AsyncClient) -> None:
    check = await examine_zep(settings_for(None, zep_api_key=SecretStr("canary-zep")), nowhere)
    assert check is not None
    assert (check.status, "none is lost" in check.remediation) == (CheckStatus.FAILED, True)
    assert "canary" not in str(check)


async def test_zep_key_is_tried_on_an_unknown_session() -> None:
    async with running_zep() as zep, httpx.AsyncClient() as client:
        right = await examine_zep(settings_for(None, zep_api_key=SecretStr(ZEP_KEY), zep_api_url=zep.base_url), client)
        wrong = await examine_zep(settings_for(None, zep_api_key=SecretStr("other"), zep_api_url=zep.base_url), client)
        assert zep.sessions == {}
    assert right is not None
    assert wrong is not None
    assert (right.status, wrong.status) == (CheckStatus.OK, CheckStatus.FAILED)
    assert "ZEP_API_KEY" in wrong.remediation


@pytest.mark.parametrize(
    ("http_status", "status"),
    [(200, CheckStatus.OK), (401, CheckStatus.FAILED), (429, CheckStatus.WARNING), (500, CheckStatus.FAILED)],
)
def test_zep_status_is_judged(http_status: int, status: CheckStatus) -> None:
    assert judge_zep(http_status, "1 ms").status is status
