"""Tests run side by side: what a worker runs, reports and leaves behind is what pytest alone would."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.workers import in_pieces

ROOT = Path(__file__).parents[2]
CONFTEST = """
from tests.support.workers import WorkerHooks, Workers, in_pieces
def pytest_addoption(pluginmanager):
    pluginmanager.add_hookspecs(WorkerHooks)
def pytest_configure(config):
    def group_of(nodeid): return "together" if "together" in nodeid else None
    config.pluginmanager.register(Workers(2, lambda items: in_pieces(items, group_of, first=lambda item: False)))
"""
EVERY_OUTCOME = """
import os, warnings
import pytest

@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    yield os.getpid()
    (tmp_path_factory.getbasetemp().parent / "ended").write_text(str(os.getpid()))

@pytest.mark.parametrize("number", range(5))
def test_together(number, shared, tmp_path): (tmp_path / "file").write_text("")
def test_fails():
    print("printed")
    os.system("echo echoed")
    assert [1] == [2]
def test_is_skipped(): pytest.skip("not here")
def test_warns(): warnings.warn("careful")
def test_lacks_fixture(nothing): ...
"""


def run(folder: Path, tests: str, *options: str) -> str:
    """What pytest prints of these tests, with two workers; their folders are in `folder/tmp`."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(tests)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", f"--rootdir={folder}", f"--basetemp={folder / 'tmp'}",
         *options, str(folder)],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    ).stdout  # fmt: skip


def test_every_outcome_is_reported(tmp_path: Path) -> None:
    printed = run(tmp_path, EVERY_OUTCOME)
    assert "1 failed, 6 passed, 1 skipped, 1 warning, 1 error" in printed
    for told in ("assert [1] == [2]", "printed\nechoed", "UserWarning: careful", "fixture 'nothing' not found"):
        assert told in printed
    assert (tmp_path / "tmp" / "ended").read_text()  # the fixture of a session ended with its worker's


def test_first_failure_stops_all(tmp_path: Path) -> None:
    tests = "import time\nimport pytest\ndef test_fails(): assert 0\n" + "".join(
        f"def test_{number}(): time.sleep(0.05)\n" for number in range(200)
    )
    printed = run(tmp_path, tests, "-x")
    assert "stopping after 1 failures" in printed
    assert int(re.findall(r"(\d+) passed", printed)[-1]) < 100


def test_dead_worker_is_told(tmp_path: Path) -> None:
    printed = run(tmp_path, "import os\ndef test_dies(): os._exit(3)\ndef test_passes(): ...\n")
    assert "test_it.py::test_dies: the process that ran this test ended with 3" in printed
    assert "1 failed" in printed


class Named:
    """What `in_pieces` uses of a pytest item."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def test_pieces_hold_each_test_once() -> None:
    names = ["a.py::x", "a.py::long", "g.py::1", "a.py::y", "b.py::x", "g.py::2", *(f"c.py::{n}" for n in range(20))]
    items: Any = [Named(name) for name in names]
    pieces = in_pieces(items, lambda name: name[0] if name < "b" or name[0] == "g" else None, first=lambda _: False)
    assert [[item.nodeid for item in piece] for piece in pieces[:2]] == [names[:2] + names[3:4], ["g.py::1", "g.py::2"]]
    pieces = in_pieces(items, lambda name: "g" if name[0] == "g" else None, first=lambda item: "long" in item.nodeid)
    assert [[item.nodeid for item in piece] for piece in pieces[:4]] == [
        ["g.py::1", "g.py::2"], ["a.py::long"], ["a.py::x", "a.py::y"], ["b.py::x"],
    ]  # fmt: skip
    assert sorted(item.nodeid for piece in pieces for item in piece) == sorted(names)


@pytest.mark.parametrize("count", [1, 2])
def test_pieces_of_one_file_are_bounded(count: int) -> None:
    items: Any = [Named(f"a.py::{number}") for number in range(16 * count)]
    assert len(in_pieces(items, lambda _: None, first=lambda _: False)) == count
