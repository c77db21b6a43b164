"""PostgreSQL, or what speaks its protocol, over asyncpg: for several processes and replicas."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from token_broker.memory.drivers.database import DialectName, store_error
from token_broker.memory.drivers.entra_password import EntraPassword
from token_broker.memory.drivers.lanes import LANES, Lane, LaneQueue
from token_broker.memory.errors import StoreUnreachableError

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["PostgresDatabase"]

R = TypeVar("R")
_WRITERS = 6
_CONNECT_S = 3.0
_CLOSE_S = 5.0
_MIGRATE_S = 600.0


class PostgresDatabase:
    """See `Database`. A connection that died is noticed when it is used; the work is then done once on a fresh one."""

    dialect: DialectName = "postgresql"

    def __init__(self, url: str, *, timeout_s: float, password: EntraPassword | None = None) -> None:
        self._url = url
        self._password = password
        self._timeout_s = timeout_s
        self._engines: dict[Lane | None, AsyncEngine] = {}  # a lane's own; None is for writing
        self._queues = {lane: LaneQueue(lane) for lane in LANES}
        self._is_open = False

    async def open(self) -> bool:
        from token_broker.memory.store.migrate import migrate

        if self._is_open:
            return False
        was_empty = await self._run(migrate, timeout_s=_MIGRATE_S)
        self._is_open = True
        return was_empty

    async def write(self, work: "Callable[[Connection], R]", *, again: bool = True) -> R:
        return await self._run_twice(work, None, again=again)

    async def read(self, work: "Callable[[Connection], R]", *, lane: Lane = "quick") -> R:
        with self._queues[lane].place():
            return await self._run_twice(work, lane)

    async def _run_twice(self, work: "Callable[[Connection], R]", lane: Lane | None, *, again: bool = True) -> R:
        if not self._is_open:
            raise StoreUnreachableError("not yet open")
        try:
            return await self._run(work, lane)
        except StoreUnreachableError as error:
            if not (again and error.lost):
                raise
        return await self._run(work, lane)

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*(engine.dispose() for engine in self._engines.values()))
        self._engines = {}
        if self._password is not None:
            await self._password.aclose()

    async def _run(
        self, work: "Callable[[Connection], R]", lane: Lane | None = None, *, timeout_s: float | None = None
    ) -> R:
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s), self._connected(lane).begin() as connection:
                return await connection.run_sync(work)
        except Exception as error:  # noqa: BLE001  # mapped, or raised as it is
            raise store_error(error) from None

    def _connected(self, lane: Lane | None) -> "AsyncEngine":
        if lane not in self._engines:
            from sqlalchemy.ext.asyncio import create_async_engine

            password = {} if self._password is None else {"password": self._password.get}
            self._engines[lane] = create_async_engine(
                self._url,
                pool_size=_WRITERS if lane is None else LANES[lane].at_once,
                max_overflow=0,
                pool_timeout=self._timeout_s,
                pool_use_lifo=True,
                connect_args={
                    "timeout": _CONNECT_S,
                    "server_settings": {"application_name": "token-broker"},
                    **password,
                },
            )
        return self._engines[lane]
