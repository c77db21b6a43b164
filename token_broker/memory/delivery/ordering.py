"""Which of a session's queued turns may go to the sink now: a pure decision."""

from collections.abc import Sequence
from dataclasses import dataclass

from token_broker.memory.store.keys import LAST_PLACE

__all__ = ["Position", "Ready", "ready"]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A turn's place in its session; turns are read and delivered in this order."""

    epoch: int
    place: int
    arrival: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The first `count` queued turns may go; the next must wait until `wait_until_us`, if anything waits."""

    count: int
    wait_until_us: int | None = None


def ready(
    queued: Sequence[Position], arrived_us: Sequence[int], last: Position | None, *, now_us: int, gap_us: int
) -> Ready:
    """Decides how many of `queued` (in order) may be delivered.

    `last` is the newest turn already settled. A turn that leaves a gap in the sequence behind the one before it (or
    that begins a connection beyond sequence 1) waits until `gap_us` after its arrival for what is missing. A turn
    without a sequence waits for nobody.
    """
    before = last
    for index, (position, arrival_us) in enumerate(zip(queued, arrived_us, strict=True)):
        if _leaves_gap(before, position) and now_us < arrival_us + gap_us:
            return Ready(index, arrival_us + gap_us)
        before = position if before is None or position > before else before
    return Ready(len(queued))


def _leaves_gap(before: Position | None, position: Position) -> bool:
    if position.place == LAST_PLACE:
        return False
    if before is None or before.epoch < position.epoch:
        return position.place > 1  # connections count from 0 or from 1
    if before.epoch > position.epoch or before.place == LAST_PLACE:
        return False
    return position.place > before.place + 1
