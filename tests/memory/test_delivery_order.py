"""Which turns may go: the table's arithmetic, and what holds whatever arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_broker.memory.delivery.worker import Ready, ready
from token_broker.memory.types import LAST_PLACE, Position

GAP_US = 10_000_000
NOW_US = 1_000_000_000
FRESH, OLD = NOW_US - 1, NOW_US - GAP_US  # arrived just now; waited long enough


def at(place: int, epoch: int = 1, arrival: int = 0) -> Position:
    return Position(epoch, place, arrival)


@pytest.mark.parametrize(
    ("queued", "arrived", "last", "expected"),
    [
        ([], [], None, Ready(0)),
        ([at(0)], [FRESH], None, Ready(1)),  # connections count from 0
        ([at(1)], [FRESH], None, Ready(1)),  # or from 1
        ([at(2)], [FRESH], None, Ready(0, FRESH + GAP_US)),  # 1 may be on its way
        ([at(2)], [OLD], None, Ready(1)),  # but not for ever
        ([at(1), at(2), at(4)], [FRESH] * 3, None, Ready(2, FRESH + GAP_US)),
        ([at(4)], [FRESH], at(3), Ready(1)),
        ([at(5)], [FRESH], at(3), Ready(0, FRESH + GAP_US)),
        ([at(2)], [FRESH], at(3), Ready(1)),  # too late to be in order: no reason to wait
        ([at(1, epoch=2)], [FRESH], at(9), Ready(1)),  # the next connection
        ([at(3, epoch=2)], [FRESH], at(9), Ready(0, FRESH + GAP_US)),
        ([at(3), at(1, epoch=2)], [FRESH, FRESH], at(1), Ready(0, FRESH + GAP_US)),  # the older connection first
        ([at(LAST_PLACE)], [FRESH], None, Ready(1)),  # without a sequence
        ([at(1), at(LAST_PLACE), at(1, epoch=2)], [FRESH] * 3, None, Ready(3)),
        ([at(5), at(9)], [OLD, FRESH], at(3), Ready(1, FRESH + GAP_US)),
    ],
)
def test_ready_turns(queued: list[Position], arrived: list[int], last: Position | None, expected: Ready) -> None:
    assert ready(queued, arrived, last, now_us=NOW_US, gap_us=GAP_US) == expected


positions = st.builds(
    Position,
    epoch=st.integers(1, 3),
    place=st.one_of(st.integers(0, 8), st.just(LAST_PLACE)),
    arrival=st.integers(0, 100),
)


@given(queued=st.lists(positions, max_size=12, unique=True), data=st.data(), last=st.none() | positions)
def test_wait_is_bounded_by_gap(queued: list[Position], data: st.DataObject, last: Position | None) -> None:
    queued = sorted(queued)
    arrived = [data.draw(st.integers(NOW_US - 2 * GAP_US, NOW_US)) for _ in queued]
    now = ready(queued, arrived, last, now_us=NOW_US, gap_us=GAP_US)
    assert 0 <= now.count <= len(queued)
    assert (now.wait_until_us is None) == (now.count == len(queued))
    assert now.wait_until_us is None or NOW_US < now.wait_until_us <= NOW_US + GAP_US
    assert ready(queued, arrived, last, now_us=NOW_US + GAP_US, gap_us=GAP_US) == Ready(len(queued))


@given(count=st.integers(1, 20), missing=st.integers(0, 19))
def test_turns_before_missing_one_go(count: int, missing: int) -> None:
    queued = [at(place) for place in range(1, count + 1) if place != missing + 1]
    now = ready(queued, [FRESH] * len(queued), None, now_us=NOW_US, gap_us=GAP_US)
    assert now.count == min(missing, count if missing < count - 1 else len(queued))
