"""The memory for the command line: the housekeeping alone, beside a broker that may be running."""

import contextlib
from collections.abc import AsyncIterator, Callable

from token_broker.memory.drivers.connect import connect
from token_broker.memory.maintenance import Maintenance
from token_broker.settings import Settings

__all__ = ["open_admin"]

_PATIENCE_S = 5.0  # for a lock of the broker's


@contextlib.asynccontextmanager
async def open_admin(
    settings: Settings, *, tell_of_empty: Callable[[], None] = lambda: None
) -> AsyncIterator[Maintenance]:
    """A maintenance on the settings' store. A running broker keeps its SQLite file; both write in turn.

    `tell_of_empty` is called where the store had no tables: no broker has ever worked on it. Raises StoreError where
    the store is away. What Zep is to forget is asked of it by the running broker.
    """
    database = connect(
        settings.database_url,
        timeout_s=max(30.0, settings.store_timeout_s),
        patience_s=_PATIENCE_S,
        exclusive=False,
        client_id=settings.client_id,
    )
    try:
        if await database.open():
            tell_of_empty()
        yield Maintenance(
            database,
            erase=settings.zep_api_key is not None,
            lease_s=3 * settings.delivery_timeout_s,
            session_token_s=settings.session_token_ttl_s,
        )
    finally:
        await database.close()
