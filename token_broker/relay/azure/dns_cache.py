"""DNS cache for Azure's hosts: one lookup serves all talks that begin at the same time.

A lookup may hang, and `BoundedResolver` limits how many run at once: a burst of talks to one host must not be refused
for that. The last good answer is kept in case a later lookup fails.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from aiohttp.abc import AbstractResolver, ResolveResult

from strategies.single_flight import SingleFlight

__all__ = ["DnsCache"]

_FRESH_S = 30.0
_LOOKUP_S = 5.0


class DnsCache:
    """One lookup at a time for each host and port. Its answer serves all who wait, and those of the next 30 s."""

    def __init__(self, resolver: AbstractResolver, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._resolver = resolver
        self._monotonic = monotonic
        self._known: dict[tuple[str, int], tuple[float, Sequence[ResolveResult]]] = {}  # as few as there are routes
        self._lookups: SingleFlight[tuple[str, int], None] = SingleFlight("azure-lookup")

    async def resolve(self, host: str, port: int) -> Sequence[ResolveResult]:
        """The host's addresses; stale ones where the lookup fails. Raises OSError. The caller bounds the wait."""
        key = (host, port)
        known = self._known.get(key)
        if known is not None and self._monotonic() - known[0] < _FRESH_S:
            return known[1]
        lookup = self._lookups.start(key, partial(self._look_up, key))
        if known is not None:  # stale: Azure's addresses hardly change, and waiting would delay the talk
            return known[1]
        await asyncio.shield(lookup)  # shared: one caller that gives up must not cancel it for the others
        return self._known[key][1]

    async def aclose(self) -> None:
        """Stops the lookups that still run."""
        await self._lookups.aclose()

    async def _look_up(self, key: tuple[str, int]) -> None:
        try:
            async with asyncio.timeout(_LOOKUP_S):
                addresses = await self._resolver.resolve(*key)
        except OSError:  # TimeoutError is one
            if key not in self._known:
                raise
        else:
            self._known[key] = (self._monotonic(), addresses)
