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
    sources = [str(_ROOT / package) for package in settings["source"]]
    # Never take a probe out again: that looks through all objects, and costs more than it saves.
    measured = slipcover.Slipcover(branch=True, source=sources, d_miss_threshold=-1)
    # A process that only hands tests to others spares itself the probes: to set them costs 3 s of CPU.
    if "PYTEST_XDIST_WORKER" in os.environ or not getattr(early_config.known_args_namespace, "numprocesses", 0):
        slipcover.ImportManager(measured, slipcover.FileMatcher(sources)).__enter__()
    early_config.pluginmanager.register(Coverage(measured, settings, check_floor=wanted == "floor"))


class Coverage:
    """Gathers what ran in all test processes, and reports it."""

    def __init__(self, measured: slipcover.Slipcover, settings: dict[str, Any], *, check_floor: bool) -> None:
        self._measured = measured
        self._settings = settings
        self._floor = settings["fail-under"] if check_floor else 0
        self._others: list[dict[str, Any]] = []
        self._text = io.StringIO()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            self._measured.source = None  # the first process adds what nobody imported
            output["coverage"] = json.dumps(self._measured.get_coverage())
            return
        found = self._measured.get_coverage()
        for other in self._others:
            slipcover.merge_coverage(found, other)
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
        if found := getattr(node, "workeroutput", {}).get("coverage"):
            self._others.append(json.loads(found))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("branch coverage")
        terminalreporter.write(self._text.getvalue())
