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
from tests.memory.support.zep_cloud import KEY as CLOUD_KEY
from tests.memory.support.zep_cloud import running_zep_cloud
from tests.support.databases import PostgresServer
from token_broker.doctor.checks import CheckStatus
from token_broker.doctor.stores import examine_database, examine_sinks, examine_zep, judge_revision, judge_zep
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


async def test_unused_sinks_are_not_asked(nowhere: httpx.AsyncClient) -> None:
    assert await examine_sinks(settings_for(None), nowhere) == []


async def test_silent_zep_fails_and_hides_its_key(nowhere: httpx.AsyncClient) -> None:
    check = await examine_zep(settings_for(None, zep_api_key=SecretStr("canary-zep")), nowhere)
    assert (check.status, "none is lost" in check.remediation) == (CheckStatus.FAILED, True)
    assert "canary" not in str(check)


async def test_zep_key_is_tried_on_an_unknown_session() -> None:
    async with running_zep() as zep, httpx.AsyncClient() as client:
        right = await examine_zep(settings_for(None, zep_api_key=SecretStr(ZEP_KEY), zep_api_url=zep.base_url), client)
        wrong = await examine_zep(settings_for(None, zep_api_key=SecretStr("other"), zep_api_url=zep.base_url), client)
        assert (zep.users, zep.sessions, zep.messages) == ({}, {}, {})
        assert "POST /sessions" in zep.requests
    assert (right.status, wrong.status) == (CheckStatus.OK, CheckStatus.FAILED)
    assert "ZEP_API_KEY" in wrong.remediation


async def test_zep_cloud_routes_are_tried() -> None:
    async with running_zep_cloud() as zep, httpx.AsyncClient() as client:
        settings = settings_for(
            None, memory_sinks=("zep_cloud",), zep_api_key=SecretStr(CLOUD_KEY), zep_api_url=zep.base_url
        )
        (check,) = await examine_sinks(settings, client)
        assert (check.name, check.status) == ("zep_cloud", CheckStatus.OK)
        assert (zep.users, zep.threads, zep.messages) == ({}, {}, {})


async def test_zep_of_other_version_is_told() -> None:
    """Today's Zep Cloud answers the routes of zep-python with 404s of its own shape."""
    async with running_zep_cloud() as zep, httpx.AsyncClient() as client:
        settings = settings_for(None, zep_api_key=SecretStr(CLOUD_KEY), zep_api_url=zep.base_url)
        check = await examine_zep(settings, client)
    assert check.status is CheckStatus.FAILED
    assert "BROKER_MEMORY_SINKS=zep_cloud" in check.remediation


async def test_all_404_in_shape_of_zep_is_told() -> None:
    def refuse(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"message": "not found"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as client:
        check = await examine_zep(settings_for(None, zep_api_key=SecretStr("key")), client)
    assert check.status is CheckStatus.FAILED


@pytest.mark.parametrize(
    ("status", "expected"),
    [(204, "ok"), (405, "ok"), (401, "ok"), (301, "failed"), (410, "failed"), (503, "warning")],
)
async def test_http_sink_is_looked_at(status: int, expected: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.method == "OPTIONS"
        return httpx.Response(status, headers={"location": "https://elsewhere.example.com"})

    settings = settings_for(
        None,
        memory_sinks=("http",),
        memory_http_url="https://memory.example.com/events",
        memory_http_secret=SecretStr(f"whsec_{'a' * 43}="),
    )
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        (check,) = await examine_sinks(settings, client)
    assert (check.name, check.status.value) == ("http sink", expected)


@pytest.mark.parametrize(
    ("http_status", "status"),
    [(200, CheckStatus.OK), (401, CheckStatus.FAILED), (429, CheckStatus.WARNING), (500, CheckStatus.FAILED)],
)
def test_zep_status_is_judged(http_status: int, status: CheckStatus) -> None:
    assert judge_zep(http_status, "1 ms").status is status
