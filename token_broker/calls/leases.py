"""Leases on calls: the replica that listens to a call holds it in the store, and another takes it when it falls silent.

A client has its answer once the call's row is stored: until then nobody but this process could end the call. While the
store does not answer, nothing waits for it: a call is held by its process alone, and its row follows. What would do
harm if another replica held the call by now, a hang-up, is claimed first.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog

from token_broker.calls.call_row import DELIVERED, MADE, CallName, CallRow, PageCall, TakenCall
from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["CallLeases", "EngagedElsewhereError", "LeaseCounts", "LeaseWatcher"]

log = structlog.get_logger("token_broker.calls")

_EVERY_S = 1.5
_LEASE_S = 6.0
_TAKEN_AT_ONCE = 500
_CLAIM_S = 3.0
_HAND_OVER_S = 10.0
_LOOK_S = 0.3
_STORED_S = 1.0  # a store that takes longer counts as silent
_HUNG_UP = "hung_up"


class EngagedElsewhereError(Exception):
    """A call has to stay at the replica that holds it."""


class LeaseWatcher(Protocol):
    """Is told what becomes of leases, and tells what the store should know of calls."""

    def taken(self, found: TakenCall) -> None:
        """A call of a replica that is gone is ours now."""
        ...

    def lost(self, name: CallName) -> None:
        """Another replica holds this call by now: nothing more may be done to it here."""
        ...

    def end_wanted(self, found: TakenCall) -> None:
        """Somebody wants this call of ours to end; at another replica, perhaps."""
        ...

    def replaced(self, found: TakenCall) -> None:
        """A newer call of the same talk has its answer."""
        ...

    def lasts(self, found: TakenCall) -> None:
        """How long this call of ours, whose talk is bounded, may go on yet."""
        ...

    def read_elsewhere(self, found: TakenCall) -> None:
        """A page reads this call's events at another replica."""
        ...

    def is_engaged(self, name: CallName) -> bool:
        """Whether this call of ours has to stay here, since a client of it is here."""
        ...

    def unheard_s(self, name: CallName) -> float | None:
        """For how long this call of ours has had no sideband; None where it has one."""
        ...

    def is_counted(self, name: CallName) -> bool:
        """Whether the ledger has what this call of ours, which is over, has used."""
        ...


@dataclass(slots=True)
class _LeasedCall:
    row: CallRow
    state: int = MADE
    epoch: int = 0
    ending: str | None = None
    is_stored: bool = False
    is_told: bool = False  # to the watcher, that an end is wanted
    is_new: bool = False  # its client has its answer, and the store does not know
    is_over: bool = False  # it is held until what it has used is written, which another replica does if we die


@dataclass(slots=True)
class LeaseCounts:
    """Calls taken from replicas that were gone or left, calls that another replica has taken, and failed renewals."""

    taken: int = 0
    lost: int = 0
    failed: int = 0


class CallLeases:
    """The calls that this process holds. `run` it, beside a `watcher`.

    A lease lasts 6 s and is renewed every 1.5 s, so that a dead replica's calls are taken within 8 s. After a time in
    which the store was silent nothing is taken for as long as a lease lasts: the others have to renew theirs first.
    What a replica that leaves has given up is taken at once.
    """

    def __init__(
        self,
        database: Database,
        holder: str,
        *,
        every_s: float = _EVERY_S,
        lease_s: float = _LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.watcher: LeaseWatcher | None = None
        self.others = 0  # live replicas
        self.counts = LeaseCounts()
        self._database = database
        self._holder = holder
        self._every_s = every_s
        self._lease_s = lease_s
        self._clock = clock
        self._held: dict[CallName, _LeasedCall] = {}
        self._wanted: dict[CallName, tuple[str, float]] = {}  # an end, and when it was made
        self._changed = asyncio.Event()
        self._written = asyncio.Event()  # another one each time
        self._beat: asyncio.Lock = asyncio.Lock()
        self._ticked_s = clock()
        self._asked_s = clock() - _CLAIM_S
        self._answers_since_s: float | None = None
        self._was_paused = False
        self._leaves = False
        # SQLite has one process: what the one before it left is looked for once.
        self._is_alone = database.dialect == "sqlite"
        self._looks_at_s = clock() + lease_s
        self._running: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    def holds(self, name: CallName) -> bool:
        """Whether this process holds the call."""
        return name in self._held

    def made(self, row: CallRow) -> None:
        """Azure has named this call. If we die before its client has the answer, who takes it hangs it up."""
        self._held[row.name] = _LeasedCall(row)
        self._changed.set()

    async def stored(self, name: CallName) -> None:
        """Returns once the store has this call of ours; at once while the store is silent, in a second at most."""
        held = self._held.get(name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STORED_S):
                while held is not None and not held.is_stored and self._answers_since_s is not None:
                    await self._written.wait()

    def adopt(self, row: CallRow) -> None:
        """A call that its page set up, and whose answer it has: the store knows that it is ours."""
        self._held[row.name] = _LeasedCall(row, DELIVERED, is_stored=True, is_new=True)
        self._changed.set()

    def delivered(self, name: CallName) -> None:
        """The client has its answer."""
        if (held := self._held.get(name)) is not None:
            held.state, held.is_new = DELIVERED, True
            self._changed.set()

    def engaged(self) -> None:
        """A call has to stay here from now on: the store is told at once."""
        self._changed.set()

    def over(self, name: CallName) -> None:
        """Azure has ended this call. If another replica holds it, that one notes the end, and what it has used."""
        if (held := self._held.get(name)) is None:
            self.want_end(name, _HUNG_UP)
        else:
            held.is_over = True
            self._changed.set()

    def want_end(self, name: CallName, ending: str) -> None:
        """The call is to end, whoever holds it: it was hung up here, and Azure may not have done it yet."""
        if (held := self._held.get(name)) is not None:
            held.ending, held.is_told = held.ending or ending, True
        self._wanted[name] = ending, self._clock()
        self._changed.set()

    async def claim_end(self, name: CallName, ending: str) -> bool:
        """Whether we may hang this call up. While the store is silent nobody else can have taken it."""
        if (held := self._held.get(name)) is None:
            return False
        held.ending, held.is_told = held.ending or ending, True
        if not held.is_stored:
            return True
        from token_broker.calls.lease_statements import claim_end

        work = partial(claim_end, holder=self._holder, held=(held.row.key, held.epoch), ending=ending)
        try:
            async with asyncio.timeout(_CLAIM_S):
                may = await self._database.write(work)
        except (StoreError, TimeoutError):
            return not self._is_unsure()
        if not may:
            self._lose(name)
        return may

    async def confirm(self) -> None:
        """Returns at once while the leases were renewed in time; else once that was tried, or after 3 s.

        A process that was stopped for a while goes on where it was, and another one may hold its calls by now.
        """
        if self._is_unsure() and self._clock() - self._asked_s >= _CLAIM_S:
            self._asked_s = self._clock()
            with contextlib.suppress(TimeoutError, StoreError):
                async with asyncio.timeout(_CLAIM_S):
                    await self.refresh()

    def start(self) -> None:
        """Runs in the background, until `aclose`."""
        self._running = asyncio.create_task(self.run(), name="call-leases")

    async def aclose(self) -> None:
        """Writes what is left, for a moment, and takes nothing any more."""
        self._leaves = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        if self._held or self._wanted:
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_CLAIM_S):
                    await self.refresh()

    async def run(self) -> None:
        """Renews and takes leases until it is cancelled; a store that is away is logged once."""
        ticking = asyncio.create_task(self._tick(), name="call-leases-clock")
        try:
            await self._keep()
        finally:
            ticking.cancel()

    async def _keep(self) -> None:
        is_silent = False
        while True:
            try:
                await self.refresh()
                is_silent = False
            except StoreError as error:
                self.counts.failed += 1
                if not is_silent:
                    log.warning("call_leases_unrenewed", reason=str(error), calls=len(self._held))
                is_silent = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._changed.wait()

    async def refresh(self) -> None:
        """Writes what has changed, renews, and takes what is free. Raises StoreError."""
        async with self._beat:
            self._changed.clear()
            try:
                asked = dict(self._held)
                found, taken, older = await self._write(list(asked.values()))
            except StoreError:
                self._answers_since_s = None
                raise
            finally:
                written, self._written = self._written, asyncio.Event()
                written.set()
            self._ticked_s, self._was_paused = self._clock(), False
            if self._answers_since_s is None:
                self._answers_since_s = self._ticked_s
            self._compare(asked, found)
        if self.watcher is None:
            return
        for each in older:
            self.watcher.replaced(each)
        self._note_taken(self.watcher, taken)
        if len(taken) == _TAKEN_AT_ONCE:
            self._changed.set()

    async def take(self, page: PageCall) -> bool:
        """Takes a call from the replica that holds it; False: no other one has such a call.

        Raises EngagedElsewhereError where it has to stay there, and StoreError.
        """
        from token_broker.calls.lease_statements import take_call

        if self.watcher is None or self._leaves or self._is_alone:
            return False
        work = partial(take_call, holder=self._holder, lease_us=round(self._lease_s * 1_000_000), page=page)
        async with self._beat:
            taken = await self._database.write(work)
            self._note_taken(self.watcher, taken or ())
        if taken is None:
            raise EngagedElsewhereError
        return bool(taken)

    def _note_taken(self, watcher: LeaseWatcher, taken: Sequence[TakenCall]) -> None:
        self.counts.taken += len(taken)
        for each in taken:
            self._held[each.row.name] = _LeasedCall(
                each.row, each.state, each.epoch, each.ending, is_stored=True, is_told=each.ending is not None
            )
            watcher.taken(each)

    async def hand_over(self) -> None:
        """Leaves the calls to other replicas; those that nobody takes within 10 s stay ours."""
        from token_broker.calls.lease_statements import find_holders, reclaim_calls, release_calls

        self._leaves = True
        with contextlib.suppress(StoreError):
            await self.refresh()
        leaving = {
            held.row.key: name
            for name, held in self._held.items()
            if held.is_stored and held.state == DELIVERED and held.ending is None and not held.is_over
        }
        if not leaving or not self.others:
            return
        epochs = [(held.row.key, held.epoch) for held in self._held.values() if held.row.key in leaving]
        until_s = self._clock() + _HAND_OVER_S
        try:
            async with self._beat:  # what is given up must not be missed meanwhile
                await self._database.write(partial(release_calls, holder=self._holder, held=epochs))
                while leaving and self._clock() < until_s:
                    await asyncio.sleep(_LOOK_S)
                    holders = await self._database.read(partial(find_holders, keys=list(leaving)))
                    for key, name in list(leaving.items()):
                        if holders.get(key) is not None or key not in holders:
                            del leaving[key]
                            self._lose(name)
                if leaving:
                    lease_us = round(self._lease_s * 1_000_000)
                    work = partial(reclaim_calls, holder=self._holder, keys=list(leaving), lease_us=lease_us)
                    await self._database.write(work)
        except StoreError as error:
            log.warning("calls_not_handed_over", calls=len(leaving), reason=str(error))
        if leaving:
            log.warning("calls_not_taken", calls=len(leaving))

    def _is_unsure(self) -> bool:
        """Whether this process may have stood still for so long that another replica holds our calls."""
        return self._was_paused or self._clock() - self._ticked_s > self._lease_s

    async def _tick(self) -> None:
        """Notes whether this process was stopped. It runs beside the renewals, which a slow store may hold up."""
        while True:
            self._was_paused = self._is_unsure()
            self._ticked_s = self._clock()
            await asyncio.sleep(min(1.0, self._lease_s / 4))

    async def _write(self, held: list[_LeasedCall]) -> tuple[dict[str, TakenCall], list[TakenCall], list[TakenCall]]:
        """What the store has of our calls, the calls that were taken, and those that ours have replaced."""
        from token_broker.calls.lease_statements import (
            end_calls,
            insert_calls,
            lock_calls,
            older_calls,
            prune_calls,
            renew_calls,
            take_calls,
            want_ends,
        )
        from token_broker.memory.store.resource_rows import beat

        lease_us = round(self._lease_s * 1_000_000)
        new = [(each.row, each.state, each.ending) for each in held if not each.is_stored]
        told = [each for each in held if each.is_new]
        keys = [each.row.key for each in held]
        engaged = [each.row.key for each in held if self.watcher is not None and self.watcher.is_engaged(each.row.name)]
        unheard = {each.row.key: self.watcher.unheard_s(each.row.name) for each in held if self.watcher is not None}
        counted = (lambda _name: True) if self._leaves or self.watcher is None else self.watcher.is_counted
        over = [each.row.name for each in held if each.is_over and counted(each.row.name)]
        wanted = dict(self._wanted)
        if self._is_alone and not (held or wanted) and self._looks_at_s > self._clock():
            return {}, [], []
        now_s = self._clock()
        may_take = not self._leaves and self.watcher is not None
        is_sure = self._answers_since_s is not None and now_s - self._answers_since_s >= self._lease_s
        if takes := may_take and is_sure:
            self._looks_at_s = math.inf

        def work(connection: "Connection") -> tuple[int, dict[str, TakenCall], list[TakenCall], list[TakenCall]]:
            others = 0
            if not self._is_alone:
                others = beat(connection, self._holder)[0] - 1
            insert_calls(connection, new, self._holder, lease_us)
            lock_calls(connection, keys, [*wanted, *over])
            later_s = self._clock()  # than `now_s`, where the store is slow
            want_ends(connection, [(name, end, later_s - at_s) for name, (end, at_s) in wanted.items()])
            end_calls(connection, over)
            older = [other for each in told for other in older_calls(connection, each.row)]
            unheard_s = {key: ago_s + later_s - now_s for key, ago_s in unheard.items() if ago_s is not None}
            found = renew_calls(connection, self._holder, keys, lease_us, engaged=engaged, unheard_s=unheard_s)
            taken: list[TakenCall] = []
            if may_take:
                taken = take_calls(connection, self._holder, lease_us, _TAKEN_AT_ONCE, given_up=not takes)
            prune_calls(connection)
            return others, found, taken, older

        self.others, found, taken, older = await self._database.write(work)
        for each in held:
            each.is_stored = True
        for each in told:
            each.is_new = False
        for name in over:
            self._held.pop(name, None)
        for name, ending in wanted.items():
            if self._wanted.get(name) == ending:
                del self._wanted[name]
        return found, taken, older

    def _compare(self, asked: dict[CallName, _LeasedCall], found: dict[str, TakenCall]) -> None:
        """Tells the watcher of calls that another replica holds, or wants to end.

        Of those that came while the store was asked it knows nothing.
        """
        for name, held in asked.items():
            stored = found.get(held.row.key)
            if self._held.get(name) is not held:
                continue  # it has ended meanwhile
            if stored is None or stored.epoch != held.epoch:
                self._lose(name)
            elif held.is_over:
                continue
            elif stored.ending is not None and not held.is_told:
                held.is_told = True
                if self.watcher is not None:
                    self.watcher.end_wanted(stored)
            elif self.watcher is not None:
                if held.row.owner.narrowed.max_session_s is not None:
                    self.watcher.lasts(stored)
                if stored.read_for_s:
                    self.watcher.read_elsewhere(stored)

    def _lose(self, name: CallName) -> None:
        if self._held.pop(name, None) is not None:
            self.counts.lost += 1
            if self.watcher is not None:
                self.watcher.lost(name)
