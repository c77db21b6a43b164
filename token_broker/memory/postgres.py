"""PostgreSQL, or what speaks its protocol, over asyncpg: for several processes and replicas."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from token_broker.memory.database import DialectName, store_error
from token_broker.memory.entra_password import EntraPassword
from token_broker.memory.errors import StoreUnreachableError

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["PostgresDatabase"]

R = TypeVar("R")
_POOL_SIZE = 8
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
        self._engine: AsyncEngine | None = None
        self._is_open = False

    async def open(self) -> bool:
        from token_broker.memory.schema import migrate

        if self._is_open:
            return False
        was_empty = await self._run(migrate, timeout_s=_MIGRATE_S)
        self._is_open = True
        return was_empty

    async def write(self, work: "Callable[[Connection], R]", *, again: bool = True) -> R:
        if not self._is_open:
            raise StoreUnreachableError("not yet open")
        try:
            return await self._run(work)
        except StoreUnreachableError as error:
            if not (again and error.lost):
                raise
        return await self._run(work)

    async def read(self, work: "Callable[[Connection], R]") -> R:
        return await self.write(work)

    async def close(self) -> None:
        if self._engine is not None:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._engine.dispose()
            self._engine = None
        if self._password is not None:
            await self._password.aclose()

    async def _run(self, work: "Callable[[Connection], R]", *, timeout_s: float | None = None) -> R:
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s), self._connected().begin() as connection:
                return await connection.run_sync(work)
        except Exception as error:  # noqa: BLE001  # mapped, or raised as it is
            raise store_error(error) from None

    def _connected(self) -> "AsyncEngine":
        if self._engine is None:
            from sqlalchemy.ext.asyncio import create_async_engine

            password = {} if self._password is None else {"password": self._password.get}
            self._engine = create_async_engine(
                self._url,
                pool_size=_POOL_SIZE,
                max_overflow=0,
                pool_timeout=self._timeout_s,
                pool_use_lifo=True,
                connect_args={
                    "timeout": _CONNECT_S,
                    "server_settings": {"application_name": "token-broker"},
                    **password,
                },
            )
        return self._engine
