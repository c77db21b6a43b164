"""The proxy's turns on their way to the store: a bounded buffer that holds them while the store is away."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from token_broker.memory.ingest.group_commit import GroupWriter, waiting_bytes
from token_broker.memory.store_errors import StoreError, StoreRefusedError
from token_broker.memory.types import (
    NOT_OWNED,
    Interruption,
    Outcome,
    Turn,
    backoff_s,
    is_storable,
    replace_unstorable,
)
from token_broker.security.limits import BoundedDict, RateLimit
from token_broker.security.tokens import ANONYMOUS, Owner

__all__ = ["IngestBuffer", "IngestCounts"]

log = structlog.get_logger(__name__)

_CHUNK = 100
_LONGEST_WAIT_S = 10.0
_LOGGED_FULL = 1_000  # sessions
_INTERRUPTION_BYTES = 600
_SHARE = 1 / 4  # of the buffer, for one owner: a client that floods must not cost others their turns


@dataclass(slots=True)
class IngestCounts:
    """Since the process began."""

    overflowed: int = 0  # turns not taken: the buffer, its owner's share of it, or the owner's quota was used up
    refused: int = 0  # turns that the store will never take
    unmarked: int = 0  # interruptions not taken: the buffer, or its owner's share of it, was used up


class IngestBuffer:
    """See `TurnIngest`. Holds at most `max_turns` turns or `max_bytes`; start `run` once.

    One owner (an anonymous one: one session) holds a quarter of that at most, and may hand in `turns_per_minute` and
    `bytes_per_minute` (0: no limit): typed items come as fast as a client sends them, and others share the buffer.
    `on_refused` is called for each turn whose session is not its owner's, or was erased: its talk can be ended.
    """

    def __init__(
        self,
        writer: GroupWriter,
        *,
        max_turns: int,
        max_bytes: int,
        turns_per_minute: int = 0,
        bytes_per_minute: int = 0,
        on_refused: Callable[[Owner], None] = lambda _owner: None,
    ) -> None:
        self._writer = writer
        self._on_refused = on_refused
        self._max_turns = max_turns
        self._max_bytes = max_bytes
        self._turns: deque[Turn | Interruption] = deque()  # an interruption comes after its turn
        self._bytes = 0
        self._held: dict[str, tuple[int, int]] = {}  # turns and bytes of each owner in the buffer
        self._turn_rate = RateLimit(turns_per_minute)
        self._byte_rate = RateLimit(bytes_per_minute)
        self._wake = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._logged_full = BoundedDict[str, None](_LOGGED_FULL)
        self.counts = IngestCounts()

    @property
    def buffered(self) -> int:
        return len(self._turns)

    def offer(self, turn: Turn) -> bool:
        if not is_storable(turn.content):
            turn = replace(turn, content=replace_unstorable(turn.content))
        size_bytes = waiting_bytes(turn)
        key = _key(turn.owner)
        is_over_quota = self._turn_rate.wait_s(key) or self._byte_rate.wait_s(key, size_bytes)
        if is_over_quota or not self._append(turn, size_bytes):
            self.counts.overflowed += 1
            return False
        self._turn_rate.count(key)
        self._byte_rate.count(key, size_bytes)
        return True

    def mark_interrupted(self, interruption: Interruption) -> bool:
        taken = self._append(interruption, _INTERRUPTION_BYTES)
        if not taken:
            self.counts.unmarked += 1
            log.warning("interruption_lost", session_id=interruption.owner.session_id)
        return taken

    def _append(self, entry: Turn | Interruption, size_bytes: int) -> bool:
        key = _key(entry.owner)
        entries, held_bytes = self._held.get(key, (0, 0))
        is_full = len(self._turns) >= self._max_turns or self._bytes + size_bytes > self._max_bytes
        # The first turn of an owner is within any share: a long one would never find room otherwise.
        exceeds_share = entries > 0 and (
            entries >= self._max_turns * _SHARE or held_bytes + size_bytes > self._max_bytes * _SHARE
        )
        if is_full or exceeds_share:
            return False
        self._held[key] = entries + 1, held_bytes + size_bytes
        self._turns.append(entry)
        self._bytes += size_bytes
        self._emptied.clear()
        self._wake.set()
        return True

    async def run(self) -> None:
        """Stores the buffered turns in order, until it is cancelled; what the store did not take is tried again."""
        failures = 0
        while True:
            await self._wake.wait()
            chunk = [self._turns[index] for index in range(min(_CHUNK, len(self._turns)))]
            try:
                await self._store(chunk)
            except StoreError:
                failures += 1
                await asyncio.sleep(min(_LONGEST_WAIT_S, backoff_s(failures) / 4))
                continue
            failures = 0
            for entry in chunk:
                self._turns.popleft()
                size_bytes = waiting_bytes(entry) if isinstance(entry, Turn) else _INTERRUPTION_BYTES
                key = _key(entry.owner)
                self._bytes -= size_bytes
                turns, held_bytes = self._held[key]
                self._held[key] = turns - 1, held_bytes - size_bytes
                if turns == 1:
                    del self._held[key]
            if not self._turns:
                self._wake.clear()
                self._emptied.set()

    async def flushed(self) -> None:
        """Returns when the buffer is empty; bound the wait."""
        await self._emptied.wait()

    async def _store(self, chunk: "list[Turn | Interruption]") -> None:
        turns = [entry for entry in chunk if isinstance(entry, Turn)]
        interruptions = [entry for entry in chunk if isinstance(entry, Interruption)]
        outcomes: list[Outcome | None]
        try:
            outcomes = [*await self._writer.submit(turns, interruptions)]
        except StoreRefusedError:
            outcomes = [await self._store_alone(turn) for turn in turns]
            if interruptions:
                await self._writer.submit([], interruptions)
        for turn, outcome in zip(turns, outcomes, strict=True):
            session_id = turn.owner.session_id
            if outcome in NOT_OWNED:
                self.counts.refused += 1
                self._on_refused(turn.owner)
            elif outcome is Outcome.FULL and session_id not in self._logged_full:
                log.warning("session_full", session_id=session_id)  # once a session; the writer counts the turns
                self._logged_full[session_id] = None

    async def _store_alone(self, turn: Turn) -> Outcome | None:
        """Stores one turn of a refused chunk; None where the store will never take it."""
        try:
            return (await self._writer.submit([turn]))[0]
        except StoreRefusedError as error:
            self.counts.refused += 1
            log.error("turn_refused", session_id=turn.owner.session_id, turn_id=turn.turn_id, reason=str(error))
            return None


def _key(owner: Owner) -> str:
    """The key that an owner is counted by. Anonymous callers share a principal, but not a quota."""
    return owner.session_id if owner.principal == ANONYMOUS else owner.principal
