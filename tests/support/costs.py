"""A pytest plugin that measures what each test costs, and names those that should be marked `slow`."""

import contextlib
import os
import resource
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.forkserver import forked_cpu_s

__all__ = ["SLOW_CPU_S", "SLOW_WAIT_S", "Cost", "Costs", "Reading"]

SLOW_CPU_S = 0.7
SLOW_WAIT_S = 1.2
_PROCESSORS = os.cpu_count() or 1
_LOAD_A_PROCESSOR = 4
"""Above it a test waits for processes that wait for a processor, and only its CPU is judged."""
_LEFT_OUT = frozenset({"browser", "postgres", "slow"})  # by `scripts/test --fast`
_PROPERTY = "cost"


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time of a process and of those that it has ended, and the time for which it slept."""

    cpu_s: float
    waited_s: float | None
    """None where it can't be judged."""

    @property
    def is_slow(self) -> bool:
        return self.cpu_s >= SLOW_CPU_S or (self.waited_s or 0) >= SLOW_WAIT_S


@dataclass(frozen=True, slots=True)
class Reading:
    """What this process has cost so far, at a time of the monotonic clock."""

    time_s: float
    own_cpu_s: float
    ended_cpu_s: float
    """CPU time of the processes that it has ended."""
    waited_s: float | None

    @classmethod
    def now(cls) -> "Reading":
        time_s = time.monotonic()
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended_cpu_s = ended.ru_utime + ended.ru_stime + forked_cpu_s()
        waited_s = None
        if os.getloadavg()[0] <= _LOAD_A_PROCESSOR * _PROCESSORS:
            with contextlib.suppress(OSError):  # not Linux
                ran, queued = map(int, Path("/proc/self/schedstat").read_text().split()[:2])
                waited_s = time_s - (ran + queued) / 1e9
        return cls(time_s, time.process_time(), ended_cpu_s, waited_s)

    def since(self, before: "Reading") -> Cost:
        cpu_s = self.own_cpu_s - before.own_cpu_s
        with_ended_s = cpu_s + self.ended_cpu_s - before.ended_cpu_s
        # More than all processors can do in the time: a process ended here that an earlier test had started.
        if with_ended_s <= (self.time_s - before.time_s) * _PROCESSORS:
            cpu_s = with_ended_s
        if self.waited_s is None or before.waited_s is None:
            return Cost(cpu_s, None)
        return Cost(cpu_s, self.waited_s - before.waited_s)


class Costs:
    """The plugin. What several tests share counts for the first of them."""

    def __init__(self, now: Callable[[], Reading] = Reading.now) -> None:
        self._now = now
        self._began = now()
        self.slow: dict[str, Cost] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self._began = self._now()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "teardown":
            cost = self._now().since(self._began)
            report.user_properties.append((_PROPERTY, [cost.cpu_s, cost.waited_s]))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == _PROPERTY and isinstance(value, list) and not _LEFT_OUT & set(report.keywords):
                cost = Cost(*value)
                if cost.is_slow:
                    self.slow[report.nodeid] = cost

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.slow:
            terminalreporter.section("to be made cheaper, or marked slow (tests/conftest.py)")
            for nodeid, cost in sorted(self.slow.items(), key=lambda of: -of[1].cpu_s):
                terminalreporter.line(f"{cost.cpu_s:5.1f} s of CPU, {cost.waited_s or 0:5.1f} s of waiting: {nodeid}")
