"""The proxy's turns on their way to the store: a bounded buffer that outlasts a store that is away."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from token_broker.bounded_dict import BoundedDict
from token_broker.memory.delivery.backoff import backoff_s
from token_broker.memory.errors import StoreError, StoreRefusedError
from token_broker.memory.ingest.group_commit import GroupWriter, turn_bytes
from token_broker.memory.text import clean, is_storable
from token_broker.memory.types import NOT_THEIRS, Outcome, Turn
from token_broker.security.owner import ANONYMOUS, Owner
from token_broker.security.rate_limits import RateLimit

__all__ = ["IngestBuffer", "IngestCounts"]

log = structlog.get_logger(__name__)

_CHUNK = 100
_LONGEST_WAIT_S = 10.0
_TOLD_FULL = 1_000  # sessions
_SHARE = 1 / 4  # of the buffer, that one owner may hold


@dataclass(slots=True)
class IngestCounts:
    """Since the process began: turns not taken since the buffer was full, or their owner's quota or share of it was
    used up, and turns that the store would never take.
    """

    overflowed: int = 0
    refused: int = 0


class IngestBuffer:
    """See `TurnIntake`. Holds at most `max_turns` turns or `max_bytes`; `run` is to be started once.

    One owner (somebody anonymous: one session) holds a quarter of that at most, and may hand in `turns_per_minute` and
    `bytes_per_minute` (0: no limit): typed items come as fast as a client sends them, and others share the buffer.
    `on_refused` hears of each turn whose session is not its owner's, or was erased: its talk goes on for nothing.
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
        self._turns: deque[Turn] = deque()
        self._bytes = 0
        self._held: dict[str, tuple[int, int]] = {}  # turns and bytes of each owner in the buffer
        self._turn_rate = RateLimit(turns_per_minute)
        self._byte_rate = RateLimit(bytes_per_minute)
        self._wake = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._told_full = BoundedDict[str, None](_TOLD_FULL)
        self.counts = IngestCounts()

    @property
    def buffered(self) -> int:
        return len(self._turns)

    def offer(self, turn: Turn) -> bool:
        if not is_storable(turn.content):
            turn = replace(turn, content=clean(turn.content))
        size_bytes = turn_bytes(turn)
        key = _key(turn.owner)
        turns, held_bytes = self._held.get(key, (0, 0))
        if self._is_full(size_bytes) or self._is_greedy(key, turns, held_bytes, size_bytes):
            self.counts.overflowed += 1
            return False
        self._held[key] = turns + 1, held_bytes + size_bytes
        self._turn_rate.count(key)
        self._byte_rate.count(key, size_bytes)
        self._turns.append(turn)
        self._bytes += size_bytes
        self._emptied.clear()
        self._wake.set()
        return True

    def _is_full(self, size_bytes: int) -> bool:
        return len(self._turns) >= self._max_turns or self._bytes + size_bytes > self._max_bytes

    def _is_greedy(self, key: str, turns: int, held_bytes: int, size_bytes: int) -> bool:
        """Whether the owner's share or quota is used up; their first turn in the buffer is within any share."""
        if turns and (turns >= self._max_turns * _SHARE or held_bytes + size_bytes > self._max_bytes * _SHARE):
            return True
        return self._turn_rate.wait_s(key) is not None or self._byte_rate.wait_s(key, size_bytes) is not None

    async def run(self) -> None:
        """Hands the buffer over, in order, until it is cancelled; what the store did not take is offered again."""
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
            self._drop(len(chunk))

    async def flushed(self) -> None:
        """Returns when the buffer is empty; bound the wait."""
        await self._emptied.wait()

    async def _store(self, chunk: list[Turn]) -> None:
        outcomes: list[Outcome | None]
        try:
            outcomes = [*await self._writer.submit(chunk)]
        except StoreRefusedError:
            outcomes = [await self._store_alone(turn) for turn in chunk]
        for turn, outcome in zip(chunk, outcomes, strict=True):
            if outcome in NOT_THEIRS:
                self.counts.refused += 1
                self._on_refused(turn.owner)
            elif outcome is Outcome.FULL:
                self._tell_full(turn.owner.session_id)

    def _tell_full(self, session_id: str) -> None:
        """Once a session, as far back as is remembered; the writer counts the turns."""
        if session_id not in self._told_full:
            log.warning("session_full", session_id=session_id)
            self._told_full[session_id] = None

    async def _store_alone(self, turn: Turn) -> Outcome | None:
        """None where the store will never take it."""
        try:
            return (await self._writer.submit([turn]))[0]
        except StoreRefusedError as error:
            self.counts.refused += 1
            log.error("turn_refused", session_id=turn.owner.session_id, turn_id=turn.turn_id, reason=str(error))
            return None

    def _drop(self, count: int) -> None:
        for _ in range(count):
            turn = self._turns.popleft()
            size_bytes, key = turn_bytes(turn), _key(turn.owner)
            self._bytes -= size_bytes
            turns, held_bytes = self._held[key]
            self._held[key] = turns - 1, held_bytes - size_bytes
            if turns == 1:
                del self._held[key]
        if not self._turns:
            self._wake.clear()
            self._emptied.set()


def _key(owner: Owner) -> str:
    """What an owner is counted by; everybody anonymous is not one of them."""
    return owner.session_id if owner.principal == ANONYMOUS else owner.principal
