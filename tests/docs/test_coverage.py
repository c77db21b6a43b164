"""What all test processes ran is added up, and a low figure fails a run of all tests."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import slipcover

from tests.support.coverage import Coverage

SETTINGS = {"fail-under": 50, "skip-covered": False, "missing-width": 60}


def found(lines: list[int], branches: list[tuple[int, int]]) -> dict[str, Any]:
    """slipcover's result for a file of 4 lines and 2 branches, where these ran."""
    missing_branches = [way for way in [(1, 2), (1, 3)] if way not in branches]
    ran = {"executed_lines": lines, "missing_lines": [line for line in range(1, 5) if line not in lines]}
    file = {**ran, "executed_branches": branches, "missing_branches": missing_branches}
    result = {"meta": {"software": "slipcover", "branch_coverage": True}, "files": {"sample.py": file}}
    nothing: dict[str, Any] = {"meta": result["meta"], "files": {}}
    slipcover.merge_coverage(result, nothing)  # adds the summary
    return result


def measured(result: dict[str, Any]) -> Any:
    return SimpleNamespace(get_coverage=lambda: result, source=["token_broker"])


def session(**config: object) -> Any:
    return SimpleNamespace(config=SimpleNamespace(**config), exitstatus=0)


@pytest.mark.parametrize(("check_floor", "lines", "expected"), [(True, 2, 1), (True, 3, 0), (False, 2, 0)])
def test_low_figure_fails_a_whole_run(check_floor: bool, lines: int, expected: int) -> None:
    plugin = Coverage(measured(found(list(range(1, lines + 1)), [])), SETTINGS, check_floor=check_floor)
    whole = session()
    plugin.pytest_sessionfinish(whole)
    assert whole.exitstatus == expected


def test_what_processes_ran_is_added_up() -> None:
    output: dict[str, str] = {}
    worker = Coverage(measured(found([1, 2], [(1, 2)])), SETTINGS, check_floor=True)
    worker.pytest_sessionfinish(session(workeroutput=output))
    first = found([1], [])
    plugin = Coverage(measured(first), SETTINGS, check_floor=True)
    plugin.pytest_testnodedown(SimpleNamespace(workeroutput=output), None)
    plugin.pytest_testnodedown(SimpleNamespace(), "ended before it could tell")
    whole = session()
    plugin.pytest_sessionfinish(whole)
    assert (whole.exitstatus, first["summary"]["percent_covered"]) == (0, 50)
    assert json.loads(output["coverage"])["files"]["sample.py"]["executed_lines"] == [1, 2]
