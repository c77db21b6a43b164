"""A pytest plugin for branch coverage, which slipcover measures with probes in the code of our packages.

coverage.py's tracer is called for each line of each library, which doubles the CPU time of the tests. TEST_COVERAGE is
`report`, or `floor`: then a figure below `fail-under` in pyproject.toml fails the run.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import slipcover
from slipcover.config import read_config

from tests.support.probes import Finder, draft_of, make_drafts

__all__ = ["Coverage", "pytest_load_initial_conftests"]

_ROOT = Path(__file__).parents[2]


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Sets the probes before tests/conftest.py imports our packages."""
    if (wanted := os.environ.get("TEST_COVERAGE")) not in {"floor", "report"}:
        raise pytest.UsageError(f"TEST_COVERAGE is floor or report, not {wanted!r}")
    settings = read_config(_ROOT / "pyproject.toml")
    too_early = [name for name in sys.modules if name.partition(".")[0] in settings["source"]]
    assert not too_early, f"imported before they could be measured: {too_early}"
    folders = {package: _ROOT / package for package in settings["source"]}
    files = sorted(file for folder in folders.values() for file in folder.rglob("*.py"))
    # Never take a probe out again: that looks through all objects, and costs more than it saves.
    measured = slipcover.Slipcover(branch=True, d_miss_threshold=-1)
    processes = getattr(early_config.known_args_namespace, "numprocesses", 0) or 0
    if "PYTEST_XDIST_WORKER" in os.environ or not processes:
        sys.meta_path.insert(0, Finder(measured, folders))
    else:  # it only hands tests to others, and needs no probes
        make_drafts(files, min(processes, os.cpu_count() or 1))
    plugin = Coverage(measured, files, settings, check_floor=wanted == "floor")
    early_config.pluginmanager.register(plugin)


class Coverage:
    """Gathers what ran in all test processes, and reports it."""

    def __init__(
        self, measured: slipcover.Slipcover, files: list[Path], settings: dict[str, Any], *, check_floor: bool
    ) -> None:
        self._measured = measured
        self._files = files
        self._settings = settings
        self._floor = settings["fail-under"] if check_floor else 0
        self._text = io.StringIO()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            output["coverage"] = json.dumps({file: list(seen) for file, seen in self._measured.newly_seen.items()})
            return
        for file in self._files:
            draft = draft_of(file)
            self._measured.code_lines[str(file)] = set(draft.lines)
            self._measured.code_branches[str(file)] = set(draft.branches)
        found = self._measured.get_coverage()
        slipcover.print_coverage(
            found,
            outfile=self._text,
            skip_covered=self._settings["skip-covered"],
            missing_width=self._settings["missing-width"],
        )
        percent = found["summary"]["percent_covered"]
        if round(percent, 1) < self._floor:
            self._text.write(f"The coverage is below fail-under in pyproject.toml: {percent:.1f} < {self._floor}.\n")
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        for file, seen in json.loads(getattr(node, "workeroutput", {}).get("coverage", "{}")).items():
            # Lines are numbers, and branches pairs of them.
            self._measured.all_seen[file].update(tuple(what) if isinstance(what, list) else what for what in seen)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("branch coverage")
        terminalreporter.write(self._text.getvalue())
