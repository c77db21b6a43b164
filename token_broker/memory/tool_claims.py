"""Calls of tools are made once, across reconnects and replicas: each is claimed in the store before it is made."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, Literal, TypeVar
from uuid import uuid4

from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import StoreError, StoreRefusedError

if TYPE_CHECKING:
    from token_broker.memory.store.claim_rows import Claim, Finished

__all__ = ["CallId", "CallState", "ClaimedCall", "ToolClaims"]

T = TypeVar("T")
R = TypeVar("R")
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
        self._claims = _Together(self._claim)
        self._outcomes = _Together(self._finish)

    async def claim(self, call: CallId, *, timeout_s: float) -> "str | ClaimedCall":
        """The holder's name where the call is ours to make; else what is known of it."""
        holder = self._new_holder()
        claimed = await self._claims.write((call.key, holder, self._lasts_us(timeout_s)))
        return holder if claimed else await self.find(call)

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
        return holder if await self._database.write(work, idempotent=False, one_statement=True) else None

    async def finish(self, call: CallId, holder: str, output: str | None, *, ok: bool) -> None:
        """Notes what the model is told, so that whoever is told of the same call says the same; None: unknown."""
        await self._outcomes.write((call.key, holder, output, ok))

    async def _claim(self, batch: "Sequence[Claim]") -> list[bool]:
        from token_broker.memory.store.claim_rows import claim_calls

        return await self._database.write(partial(claim_calls, claims=batch), one_statement=len(batch) == 1)

    async def _finish(self, batch: "Sequence[Finished]") -> list[None]:
        from token_broker.memory.store.claim_rows import finish_calls

        return await self._database.write(partial(finish_calls, outcomes=batch), one_statement=len(batch) == 1)

    def _lasts_us(self, timeout_s: float) -> int:
        return round((timeout_s + self._margin_s) * 1_000_000)


class _Together(Generic[T, R]):
    """Writes rows of several callers in one transaction: what comes while one is written goes into the next.

    A row may be written twice: it has to be idempotent. One that spoils its transaction fails alone.
    """

    def __init__(self, write: Callable[[Sequence[T]], Awaitable[Sequence[R]]]) -> None:
        self._write = write
        self._lock = asyncio.Lock()
        self._waiting: dict[asyncio.Future[R], T] = {}

    async def write(self, row: T) -> R:
        """What came of the row. Raises StoreError."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting[done] = row
        try:
            async with self._lock:
                if not done.done():
                    await self._write_waiting()
        finally:
            self._waiting.pop(done, None)
        return done.result()

    async def _write_waiting(self) -> None:
        batch = dict(self._waiting)
        try:
            found = await self._write(list(batch.values()))
        except StoreRefusedError as error:
            if len(batch) == 1:
                self._fail(batch, error)
                return
            for done, row in batch.items():
                try:
                    self._tell(done, *await self._write([row]))
                except StoreError as each:
                    self._fail([done], each)
        except StoreError as error:
            self._fail(batch, error)
        else:
            for done, told in zip(batch, found, strict=True):
                self._tell(done, told)

    def _tell(self, done: "asyncio.Future[R]", found: R) -> None:
        if self._waiting.pop(done, None) is not None:  # else its caller has left
            done.set_result(found)

    def _fail(self, batch: "Iterable[asyncio.Future[R]]", error: StoreError) -> None:
        for done in batch:
            if self._waiting.pop(done, None) is not None:
                done.set_exception(error)
                done.exception()  # retrieved: its caller may leave before it looks
