"""The store's files on the disk: nobody but the broker's user may read them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.memory.support.turns import turn
from tests.support.databases import sqlite_url
from token_broker.bootstrap import signing_keys
from token_broker.memory.service import Memory
from token_broker.memory.types import Outcome
from token_broker.settings import Settings


@pytest.fixture(autouse=True)
def _permissive(tmp_path: Path) -> Iterator[None]:
    """What is made without a mode is readable by everybody, and so is the folder that the test has."""
    tmp_path.chmod(0o755)
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> str:
    return f"{path.stat().st_mode & 0o777:o}"


def modes(folder: Path) -> dict[str, str]:
    return {path.name: mode(path) for path in folder.iterdir()}


def make_readable(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()
        (folder / name).chmod(0o644)


async def test_store_files_are_private_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "var" / "lib"
    settings = Settings.load(database_url=SecretStr(sqlite_url(folder)))
    signing_keys(settings)
    async with Memory.open(settings) as memory:
        await memory.ready()
        assert await memory.append([turn("t1")]) == [Outcome.STORED]
        found = modes(folder)
        assert found.keys() >= {f"memory.db{suffix}" for suffix in ("", "-wal", "-shm", ".lock", ".signing-key")}
        assert set(found.values()) == {"600"}
        assert [mode(path) for path in (folder, folder.parent)] == ["700", "700"]


async def test_open_file_modes_are_corrected(tmp_path: Path) -> None:
    settings = Settings.load(database_url=SecretStr(sqlite_url(tmp_path)), signing_keys="k" * 40)
    async with Memory.open(settings) as memory:
        await memory.append([turn("t1")])
    names = ["memory.db", "memory.db-wal", "memory.db-shm", "memory.db.lock"]
    make_readable(tmp_path, *names)
    with capture_logs() as logs:
        async with Memory.open(settings) as memory:
            await memory.ready()
            assert await memory.append([turn("t1")]) == [Outcome.DUPLICATE]
            assert {modes(tmp_path)[name] for name in names} == {"600"}
    told = [line for line in logs if line["event"] == "store_file_made_private"]
    assert {(line["file"], line["mode"]) for line in told} == {(name, "0644") for name in names}


async def test_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    before = mode(tmp_path)
    settings = Settings.load(database_url=SecretStr(sqlite_url(tmp_path)), signing_keys="k" * 40)
    async with Memory.open(settings) as memory:
        await memory.ready()
    assert mode(tmp_path) == before
