"""Asks the sinks for what is erased at once, from the command line: also where no broker runs."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from token_broker.memory.delivery.open_sinks import open_sink, policy_of
from token_broker.memory.delivery.worker import DeliveryWorker
from token_broker.memory.drivers.database import Database
from token_broker.settings import Settings

__all__ = ["erase_now"]

log = structlog.get_logger(__name__)

_PAUSE_S = 0.25


async def erase_now(
    database: Database, settings: Settings, is_over: Callable[[], Awaitable[bool]], *, wait_s: float
) -> None:
    """Carries out due erasures until `is_over`, or for `wait_s`. A broker that runs beside it takes its share.

    Raises StoreError.
    """
    async with contextlib.AsyncExitStack() as stack:
        workers = []
        for name in settings.sinks:
            try:
                sink = await open_sink(name, settings, database)
            except ImportError:
                log.error("sink_not_installed", sink=name)
                continue
            stack.push_async_callback(sink.aclose)
            workers.append(DeliveryWorker(database, sink, policy_of(name, settings)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not await is_over():
                    began = [await worker.erase_due() for worker in workers]
                    for worker in workers:
                        await worker.idle()
                    if not any(began):
                        await asyncio.sleep(_PAUSE_S)
