"""A test that costs much, and is in `scripts/test --fast` all the same, is named."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.costs import SLOW_CPU_S, SLOW_WAIT_S, Cost, Costs, Reading


def named(cost: Cost, *marks: str) -> list[str]:
    """The tests that a run names, which has one of this cost with these marks."""
    began = Reading(time_s=1000, own_cpu_s=5, ended_cpu_s=50, waited_s=100)
    waited_s = None if cost.waited_s is None else 100 + cost.waited_s
    now = [began, began, Reading(time_s=1010, own_cpu_s=5 + cost.cpu_s, ended_cpu_s=50, waited_s=waited_s)]
    costs = Costs(lambda: now.pop(0))
    next(costs.pytest_runtest_protocol())
    report: Any = SimpleNamespace(nodeid="a.py::x", keywords=dict.fromkeys(marks, 1), user_properties=[("other", 1)])
    call: Any = SimpleNamespace(when="teardown")
    making = costs.pytest_runtest_makereport(call)
    next(making)
    with pytest.raises(StopIteration):
        making.send(report)
    costs.pytest_runtest_logreport(report)
    lines: list[str] = []
    reporter: Any = SimpleNamespace(section=lambda _: None, line=lines.append)
    costs.pytest_terminal_summary(reporter)
    return lines


@pytest.mark.parametrize("cost", [Cost(SLOW_CPU_S + 0.1, None), Cost(0, SLOW_WAIT_S + 0.1)])
def test_costly_test_is_named_unless_marked(cost: Cost) -> None:
    assert [line.endswith("a.py::x") for line in named(cost, "asyncio")] == [True]
    for mark in ("slow", "browser", "postgres"):
        assert named(cost, mark) == []


def test_cheap_test_is_not_named() -> None:
    assert named(Cost(SLOW_CPU_S - 0.1, SLOW_WAIT_S - 0.1)) == []
    assert named(Cost(0, None)) == []


def test_cost_counts_cpu_apart_from_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    began = Reading.now()
    time.sleep(0.1)
    cost = Reading.now().since(began)
    assert cost.waited_s is not None
    assert cost.cpu_s < cost.waited_s
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert Reading.now().since(began).waited_s is None


@pytest.mark.parametrize(("ended_cpu_s", "counted_s"), [(1, 1.2), (3, 3.2), (4, 0.2), (60, 0.2)])
def test_process_of_an_earlier_test_is_not_counted(
    ended_cpu_s: float, counted_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processors can't do more than 4 s of work in 2 s: what ended here has run before."""
    monkeypatch.setattr("tests.support.costs._PROCESSORS", 2)
    began = Reading(time_s=1000, own_cpu_s=5, ended_cpu_s=50, waited_s=None)
    ended = Reading(time_s=1002, own_cpu_s=5.2, ended_cpu_s=50 + ended_cpu_s, waited_s=None)
    assert ended.since(began).cpu_s == pytest.approx(counted_s)
