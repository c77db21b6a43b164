"""Calls of tools are made once, across reconnects and replicas: each is claimed in the store before it is made."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal
from uuid import uuid4

from token_broker.memory.drivers.database import Database

__all__ = ["CallId", "CallState", "ClaimedCall", "ToolClaims"]

CallState = Literal["running", "done", "unknown", "erased"]
_STATES: tuple[CallState, ...] = ("running", "done", "unknown")  # by their numbers in the store


@dataclass(frozen=True, slots=True)
class CallId:
    """Which call it is. Azure's call ids alone are not unique."""

    session_id: str
    talk_id: str
    azure_session: str
    call_id: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.session_id, self.talk_id, self.azure_session, self.call_id


@dataclass(frozen=True, slots=True)
class ClaimedCall:
    """A call that somebody claimed: what came of it, and what the model was told. `ok`: the tool's own word."""

    state: CallState
    output: str | None = None
    ok: bool = False


class ToolClaims:
    """The claims in the store. Every method raises StoreError; the caller bounds the wait.

    A claim holds for the call's own time and `margin_s`: one that is older and not finished is of a process that ended,
    and what came of its call is unknown.
    """

    def __init__(
        self, database: Database, *, margin_s: float = 5.0, new_holder: Callable[[], str] = lambda: uuid4().hex
    ) -> None:
        self._database = database
        self._margin_s = margin_s
        self._new_holder = new_holder

    async def claim(self, call: CallId, *, timeout_s: float) -> "str | ClaimedCall":
        """The holder's name where the call is ours to make; else what is known of it."""
        from token_broker.memory.store.claim_rows import claim_call

        holder = self._new_holder()
        work = partial(claim_call, key=call.key, holder=holder, lasts_us=self._lasts_us(timeout_s))
        return holder if await self._database.write(work) else await self.find(call)

    async def find(self, call: CallId) -> ClaimedCall:
        """What is known of a claimed call; `erased` where it is not there any more."""
        from token_broker.memory.store.claim_rows import find_call

        found = await self._database.read(partial(find_call, key=call.key))
        return ClaimedCall("erased") if found is None else ClaimedCall(_STATES[found[0]], found[1], found[2])

    async def take_over(self, call: CallId, *, timeout_s: float) -> str | None:
        """The holder's name where the outcome was unknown and the call is ours to make again; else None."""
        from token_broker.memory.store.claim_rows import take_over

        holder = self._new_holder()
        work = partial(take_over, key=call.key, holder=holder, lasts_us=self._lasts_us(timeout_s))
        return holder if await self._database.write(work, idempotent=False) else None

    async def finish(self, call: CallId, holder: str, output: str | None, *, ok: bool) -> None:
        """Notes what the model is told, so that whoever is told of the same call says the same; None: unknown."""
        from token_broker.memory.store.claim_rows import finish_call

        await self._database.write(partial(finish_call, key=call.key, holder=holder, output=output, ok=ok))

    def _lasts_us(self, timeout_s: float) -> int:
        return round((timeout_s + self._margin_s) * 1_000_000)
