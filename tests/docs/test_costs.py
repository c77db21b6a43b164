"""A test that costs much, and is in `scripts/test --fast` all the same, is named."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.costs import SLOW_CPU_S, SLOW_WAIT_S, Cost, Costs


def named(cost: Cost, *marks: str) -> list[str]:
    """The tests that a run names, which has one of this cost with these marks."""
    now = [Cost(5, 100), Cost(5, 100), Cost(5 + cost.cpu_s, None if cost.waited_s is None else 100 + cost.waited_s)]
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
    began = Cost.now()
    time.sleep(0.1)
    cost = Cost.now().since(began)
    assert cost.waited_s is not None
    assert cost.cpu_s < cost.waited_s
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert Cost.now().since(began).waited_s is None
