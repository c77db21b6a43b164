"""Hours with many outages, in virtual time: with a second resource hardly anybody notices."""

import pytest

from benchmarks import pool_day
from tests.strategies.virtual_time import run_in_virtual_time


def share(resources: int, common_share: float = 0.0) -> float:
    result = run_in_virtual_time(pool_day.simulate(resources, 0.25, 6, common_share, seed=3))
    assert result.talks > 1500
    return result.live / result.talks


@pytest.mark.slow
def test_second_resource_covers_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 h with 3 % of outages: 97 % and 99.91 % by the formula."""
    monkeypatch.setattr(pool_day, "AVAILABILITY", 0.97)
    alone, together = share(1), share(2)
    assert 0.9 < alone < 0.99
    assert together > 0.998


@pytest.mark.parametrize(
    ("resources", "common_share", "expected"), [(1, 0, 0.999), (2, 0, 0.999999), (1, 0.1, 0.999), (2, 0.1, 0.9998992)]
)
def test_formula(resources: int, common_share: float, expected: float) -> None:
    assert pool_day.formula(resources, common_share) == pytest.approx(expected, abs=1e-7)
