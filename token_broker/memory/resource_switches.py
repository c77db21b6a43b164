"""Which Azure resources the operator has disabled, and how many replicas share their quotas, read again and again.

While the store is silent, what was read last holds.
"""

import asyncio
import secrets
from collections.abc import Callable
from functools import partial

import structlog

from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import StoreError

__all__ = ["ResourceSwitches"]

log = structlog.get_logger(__name__)

_EVERY_S = 1.5  # a switch holds everywhere within 2 s, the reading included
_BEAT_EVERY = 4  # readings: a replica counts as ended after 15 s without a beat

OnSwitched = Callable[[frozenset[str]], object]
"""Gets the names of all disabled resources."""

OnReplicas = Callable[[int, bool], object]
"""Gets how many replicas live, and whether this one is fresh while others used the quotas within the last minute."""


class ResourceSwitches:
    """`watch` it before the store is opened. Without an `on_replicas` this process is not counted among the replicas.

    A store that one process has for itself has no replicas either.
    """

    def __init__(self, database: Database, *, every_s: float = _EVERY_S) -> None:
        self._database = database
        self._every_s = every_s
        self.replica_id = secrets.token_hex(8)
        self._on_switched: OnSwitched = lambda _disabled: None
        self._on_replicas: OnReplicas | None = None
        self._disabled: frozenset[str] = frozenset()
        self._replicas = 0
        self._readings = 0
        self._stale = False

    def watch(self, on_switched: OnSwitched, on_replicas: OnReplicas | None) -> None:
        """Names the callbacks for changes: of what is disabled, and of the number of replicas."""
        self._on_switched = on_switched
        self._on_replicas = None if self._database.dialect == "sqlite" else on_replicas

    async def run(self) -> None:
        """Reads again and again; a store that is away is logged once."""
        while True:
            try:
                await self.refresh()
            except StoreError as error:
                if not self._stale:
                    log.warning("resource_switches_unread", reason=str(error), disabled=sorted(self._disabled))
                self._stale = True
            await asyncio.sleep(self._every_s)

    async def refresh(self) -> None:
        """Reads once. Raises StoreError: then everything stays as it was."""
        from token_broker.memory.store.resource_rows import beat, disabled_names

        found = frozenset(await self._database.read(disabled_names))
        self._stale = False
        if found != self._disabled:
            log.warning("resources_switched", disabled=sorted(found), enabled=sorted(self._disabled - found))
            self._disabled = found
            self._on_switched(found)
        if self._on_replicas is not None and self._readings % _BEAT_EVERY == 0:
            live, others = await self._database.write(partial(beat, replica_id=self.replica_id))
            if live != self._replicas:
                is_fresh = self._replicas == 0 and others > 0
                self._replicas = live
                self._on_replicas(live, is_fresh)
        self._readings += 1
