"""PostgreSQL, or a database that speaks its protocol, over asyncpg: for several processes and replicas."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from token_broker.memory.drivers.database import READ_POOLS, DialectName, PoolName, pool_is_full, store_error
from token_broker.memory.drivers.entra_password import EntraPassword
from token_broker.memory.store_errors import StoreRolledBackError, StoreUnreachableError

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["PostgresDatabase"]

R = TypeVar("R")
_WRITERS = 6  # 12 connections a replica with those of the read pools: a small server allows some fifty
_CONNECT_S = 3.0
_CLOSE_S = 5.0
_MIGRATE_S = 600.0  # replicas that start together wait for the one that migrates


class PostgresDatabase:
    """See `Database`. Work is done once more where its connection was dead, and where a deadlock was ended with it."""

    dialect: DialectName = "postgresql"

    def __init__(self, url: str, *, timeout_s: float, password: EntraPassword | None = None) -> None:
        self._url = url
        self._password = password
        self._timeout_s = timeout_s
        self._engines: dict[PoolName | None, AsyncEngine] = {}  # one a read pool; None is for writing
        self._without_transactions: AsyncEngine | None = None  # that for writing, with its connections
        self._reading = dict.fromkeys(READ_POOLS, 0)
        self._is_open = False

    async def open(self) -> bool:
        from token_broker.memory.store.tables import migrate

        if self._is_open:
            return False
        was_empty = await self._run(migrate, timeout_s=_MIGRATE_S)
        self._is_open = True
        return was_empty

    async def write(
        self, work: "Callable[[Connection], R]", *, idempotent: bool = True, one_statement: bool = False
    ) -> R:
        return await self._run_twice(work, None, idempotent=idempotent, one_statement=one_statement)

    async def read(self, work: "Callable[[Connection], R]", *, pool: PoolName = "quick") -> R:
        if self._reading[pool] >= READ_POOLS[pool].total:
            raise pool_is_full(pool)
        self._reading[pool] += 1
        try:
            return await self._run_twice(work, pool)
        finally:
            self._reading[pool] -= 1

    async def _run_twice(
        self,
        work: "Callable[[Connection], R]",
        pool: PoolName | None,
        *,
        idempotent: bool = True,
        one_statement: bool = False,
    ) -> R:
        if not self._is_open:
            raise StoreUnreachableError("not yet open")
        try:
            return await self._run(work, pool, one_statement=one_statement)
        except StoreUnreachableError as error:
            if not (idempotent and error.lost):
                raise
        except StoreRolledBackError:
            pass
        return await self._run(work, pool, one_statement=one_statement)

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*(engine.dispose() for engine in self._engines.values()))
        self._engines, self._without_transactions = {}, None
        if self._password is not None:
            await self._password.aclose()

    async def _run(
        self,
        work: "Callable[[Connection], R]",
        pool: PoolName | None = None,
        *,
        timeout_s: float | None = None,
        one_statement: bool = False,
    ) -> R:
        try:
            if (engine := self._engines.get(pool)) is None:
                from sqlalchemy.ext.asyncio import create_async_engine

                password = {} if self._password is None else {"password": self._password.get}
                engine = self._engines[pool] = create_async_engine(
                    self._url,
                    pool_size=_WRITERS if pool is None else READ_POOLS[pool].at_once,
                    max_overflow=0,
                    pool_timeout=self._timeout_s,
                    pool_use_lifo=True,  # surplus connections stay idle, so that a proxy in between may close them
                    connect_args={
                        "timeout": _CONNECT_S,
                        "server_settings": {"application_name": "token-broker"},
                        **password,
                    },
                )
            if one_statement:
                if self._without_transactions is None:
                    self._without_transactions = engine.execution_options(isolation_level="AUTOCOMMIT")
                engine = self._without_transactions
            async with asyncio.timeout(timeout_s or self._timeout_s), engine.begin() as connection:
                return await connection.run_sync(work)
        except Exception as error:  # noqa: BLE001  # mapped, or raised unchanged
            raise store_error(error) from None
