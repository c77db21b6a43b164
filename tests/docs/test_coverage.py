"""What all test processes ran is added up, a low figure fails a run of all tests, and probes are set once a source."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import slipcover

from tests.support import probes
from tests.support.coverage import Coverage
from tests.support.probes import Finder, draft_of, make_drafts

SETTINGS = {"fail-under": 50, "skip-covered": False, "missing-width": 60}
SAMPLE = """\
def sign(
    of: int,
    *, name: str = "",
) -> str:
    \"\"\"Of a number.\"\"\"
    for _ in range(2):
        if of < 0:
            return "-"
    match of:
        case 0:
            return ""
    async def late() -> int:
        if of:
            return 1
        return 2
    return "+" if of else [name for name in "ab"][0]


class Signs:
    negative = sign(-1)
"""


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    file = tmp_path / "coverage_sample" / "signs.py"
    file.parent.mkdir()
    file.write_text(SAMPLE)
    return file


@pytest.fixture
def measured(sample: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[slipcover.Slipcover]:
    """What measures the sample where it is imported."""
    measured = slipcover.Slipcover(branch=True, d_miss_threshold=-1)
    monkeypatch.syspath_prepend(sample.parents[1])
    monkeypatch.setattr(sys, "meta_path", [Finder(measured, {"coverage_sample": sample.parent}), *sys.meta_path])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    yield measured
    for name in ("coverage_sample", "coverage_sample.signs"):
        sys.modules.pop(name, None)


def session(**config: object) -> Any:
    return SimpleNamespace(config=SimpleNamespace(**config), exitstatus=0)


def plugin(sample: Path, *lines: int | tuple[int, int], check_floor: bool = True) -> Coverage:
    """The plugin of a process in which these lines and branches ran."""
    measured = slipcover.Slipcover(branch=True, d_miss_threshold=-1)
    measured.newly_seen[str(sample)].update(lines)
    return Coverage(measured, [sample], SETTINGS, check_floor=check_floor)


LINES = tuple(range(1, SAMPLE.count("\n") + 1))


@pytest.mark.parametrize(("check_floor", "lines", "expected"), [(True, (1,), 1), (True, LINES, 0), (False, (1,), 0)])
def test_low_figure_fails_a_whole_run(sample: Path, check_floor: bool, lines: tuple[int, ...], expected: int) -> None:
    whole = session()
    plugin(sample, *lines, check_floor=check_floor).pytest_sessionfinish(whole)
    assert whole.exitstatus == expected


def test_what_processes_ran_is_added_up(sample: Path) -> None:
    outputs: list[dict[str, str]] = [{}, {}]
    for output, lines in zip(outputs, [(1, 3, 6, (6, 7), 7, (7, 8), 8), (1, 6, 9, (9, 0), 10, 11)], strict=True):
        plugin(sample, *lines).pytest_sessionfinish(session(workeroutput=output))
    first = plugin(sample, 12)
    for output in outputs:
        first.pytest_testnodedown(SimpleNamespace(workeroutput=output), None)
    first.pytest_testnodedown(SimpleNamespace(), "ended before it could tell")
    first.pytest_sessionfinish(session())
    (file,) = first._measured.get_coverage()["files"].values()
    assert file["executed_lines"] == [1, 3, 6, 7, 8, 9, 10, 11, 12]
    assert file["executed_branches"] == [(6, 7), (7, 8), (9, 0)]
    assert len(file["missing_lines"]) + 9 == len(draft_of(sample).lines)


def ran_by_slipcover_itself(sample: Path) -> dict[str, Any]:
    """slipcover's own result for the sample, which its own importer loads."""
    measured = slipcover.Slipcover(branch=True, d_miss_threshold=-1)
    with slipcover.ImportManager(measured, slipcover.FileMatcher([str(sample.parent)])):
        importlib.import_module("coverage_sample.signs")
    (found,) = measured.get_coverage()["files"].values()
    del sys.modules["coverage_sample.signs"]
    return dict(found)


def test_figures_are_slipcovers_own(
    sample: Path, measured: slipcover.Slipcover, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ran_by_slipcover_itself(sample)
    for _ in ("made", "kept"):
        measured.newly_seen.clear()
        signs = importlib.import_module("coverage_sample.signs")
        assert signs.Signs.negative == "-"
        assert signs.sign(1) == "+"  # line 16, after the figures of the import alone
        draft = draft_of(sample)
        seen = measured.newly_seen[str(sample)]
        executed = sorted(what for what in seen if not isinstance(what, tuple) and what in draft.lines)
        assert executed == sorted({*expected["executed_lines"], 9, 10, 12, 16})
        assert sorted(draft.lines) == sorted(expected["executed_lines"] + expected["missing_lines"])
        assert sorted(draft.branches) == sorted(expected["executed_branches"] + expected["missing_branches"])
        assert {(6, 7), (7, 8), (6, 9), (9, 12)} <= {what for what in seen if isinstance(what, tuple)}
        del sys.modules["coverage_sample.signs"]
        monkeypatch.setattr(probes, "_make", None)  # from here on all is kept


def test_drafts_are_of_the_file_as_it_is(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    draft = draft_of(sample)
    make_drafts([sample], 1)
    assert draft_of(sample) == draft
    sample.write_text(f"{SAMPLE}x = 1\n")
    assert draft_of(sample).lines == {*draft.lines, SAMPLE.count("\n") + 1}
    moved = sample.parent.rename(sample.parents[1] / "moved") / sample.name
    assert draft_of(moved).code.co_filename == str(moved)
