"""The marks of tests/support/coverage.py tell what coverage.py's own tracer tells, and a low figure fails a run."""

from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import coverage
import pytest

from tests.support.coverage import _NAME, Coverage, add_marks, arcs_of

SAMPLE = '''\
"""A module."""
from __future__ import annotations

import asyncio


def decorate(function):
    return function


class Thing:
    """Documented."""

    size: int = 3

    @decorate
    def grow(
        self,
        by=1,
    ):
        """Documented."""
        if by > 2:
            return by
        elif by == 2:
            by += 1
        while by < 5:
            by += 1
            if by == 4:
                break
        else:
            by = 0
        for _ in range(by):
            pass
        return (
            by
            + self.size
        )


def choose(what):
    match what:
        case 1:
            found = "one"
        case int() if what > 5:
            found = "many"
        case str() | bytes():
            found = "text"
    return what


def choose_all(what):
    match what:
        case 1:
            return "one"
        case _:
            return "other"


def fail(how):
    global tried
    tried = how
    try:
        if how == 1:
            raise ValueError(how)
        if how == 2:
            raise KeyError(how)
    except ValueError:
        return "value"
    except (KeyError, TypeError) as error:
        seen = str(error)
    else:
        seen = "nothing"
    finally:
        tried = None
    with open("/dev/null") as file:
        for line in file:
            print(line)
    return seen


async def wait(times):
    async def numbers():
        for number in range(times):
            yield number

    async with asyncio.timeout(5):
        async for number in numbers():
            if number:
                await asyncio.sleep(0)
    while True:
        times += 1
        if times > 3:
            return times
'''

CALLS = {
    "nothing": "",
    "growing": "Thing().grow()",
    "grown": "Thing().grow(3); Thing().grow(2); Thing().grow(5)",
    "match": "choose(1); choose('a')",
    "no match": "choose(2); choose(9)",
    "match of all": "choose_all(1)",
    "match of the rest": "choose_all(2)",
    "no failure": "fail(0)",
    "failures": "fail(1); fail(2)",
    "waiting": "asyncio.run(wait(2))",
    "no waiting": "asyncio.run(wait(0))",
}


def run(module: CodeType, calls: str, **names: object) -> None:
    space: dict[str, Any] = {"__name__": "sample", **names}
    exec(module, space)  # noqa: S102
    exec(calls, space)  # noqa: S102


def findings(measured: coverage.Coverage, path: str) -> tuple[set[int], dict[int, set[int]]]:
    """The lines and the branches that did not run."""
    analysis = measured._analyze(path)
    return analysis.missing, {line: set(to) for line, to in analysis.missing_branch_arcs().items()}


def traced(path: str, calls: str) -> coverage.Coverage:
    measured = coverage.Coverage(data_file=None, config_file=False, branch=True, include=[path])
    with measured.collect():
        run(compile(Path(path).read_text(), path, "exec"), calls)
    return measured


def marked(path: str, calls: str) -> coverage.Coverage:
    tree, marks = add_marks(Path(path).read_bytes(), path)
    ran = [False] * len(marks)
    run(compile(tree, path, "exec", dont_inherit=True), calls, **{_NAME: ran})
    measured = coverage.Coverage(data_file=None, config_file=False, branch=True, include=[path])
    numbers = {number for number, mark in enumerate(ran) if mark}
    measured.get_data().add_arcs({path: list(arcs_of(path, numbers, measured))})
    return measured


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_marks_agree_with_the_tracer(tmp_path: Path, calls: str) -> None:
    path = tmp_path / "sample.py"
    path.write_text(SAMPLE)
    assert findings(marked(str(path), calls), str(path)) == findings(traced(str(path), calls), str(path))


def test_marks_keep_line_numbers() -> None:
    tree, _ = add_marks(b"def divide(by):\n\n    return (\n        1\n        / by\n    )\n", "sample.py")
    with pytest.raises(ZeroDivisionError) as raised:
        run(compile(tree, "sample.py", "exec"), "divide(0)", **{_NAME: [False] * 9})
    assert raised.traceback[-1].lineno == 3  # from 0


@pytest.mark.parametrize(("floor", "percent", "expected"), [(True, 1.0, 1), (True, 99.9, 0), (False, 1.0, 0)])
def test_low_figure_fails_a_whole_run(
    monkeypatch: pytest.MonkeyPatch, floor: bool, percent: float, expected: int
) -> None:
    measured = Coverage(floor=floor)
    monkeypatch.setattr(measured, "report", lambda out: percent)
    session: Any = SimpleNamespace(config=SimpleNamespace(), exitstatus=0)
    measured.pytest_sessionfinish(session)
    assert session.exitstatus == expected
