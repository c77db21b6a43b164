"""Which calls are whose, over all replicas: asked before a call that a page names is joined, or hung up."""

import asyncio
from functools import partial

from token_broker.calls.call_row import AttachClaim, CallRow
from token_broker.calls.leases import CallLeases
from token_broker.memory.drivers.database import Database
from token_broker.security.tokens import Owner

__all__ = ["AttachClaims"]

_ASKED_FOR_S = 60.0  # longer than an attach takes
_LEASE_S = 6.0


class AttachClaims:
    """The store's word. All of it raises StoreError or TimeoutError where the store is silent for `patience_s`."""

    def __init__(self, database: Database, holder: str, leases: CallLeases, *, patience_s: float) -> None:
        self._patience_s = patience_s
        self._database = database
        self._holder = holder
        self._leases = leases

    async def claim(self, row: CallRow) -> AttachClaim:
        """Claims that this replica asks Azure about the call; `row` says whose it would be."""
        from token_broker.calls.shared_statements import claim_attach

        work = partial(claim_attach, row=row, holder=self._holder, lasts_us=round(_ASKED_FOR_S * 1_000_000))
        async with asyncio.timeout(self._patience_s):
            return await self._database.write(work)

    async def settle(self, row: CallRow, *, verified: bool) -> bool:
        """Whether the call is ours to hold from now on; one that is not `verified` is refused at every replica."""
        from token_broker.calls.shared_statements import settle_attach

        lease_us = round(_LEASE_S * 1_000_000)
        work = partial(settle_attach, row=row, holder=self._holder, lease_us=lease_us, verified=verified)
        async with asyncio.timeout(self._patience_s):
            is_ours = await self._database.write(work)
        if is_ours:
            self._leases.adopt(row)
        return is_ours

    async def endpoint_of(self, call_id: str, owner: Owner) -> str | None:
        """The host of the owner's call of that Azure id, whichever replica holds it; None where there is none."""
        from token_broker.calls.shared_statements import find_endpoint

        async with asyncio.timeout(self._patience_s):
            return await self._database.read(partial(find_endpoint, owner=owner, call_id=call_id))
