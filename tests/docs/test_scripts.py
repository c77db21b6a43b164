"""`scripts/test` hands pytest the arguments that its comment promises, and tests get their marks."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from tests.conftest import _SLOW, group_of, pytest_collection_modifyitems, pytest_configure
from tests.docs.test_commands import make_checkout

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose Python prints its arguments, and where no browser has to be installed."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    make_checkout(folder)
    browsers = [f"bin/{name}" for name in ("WebKitWebDriver", "Xvfb", "pulseaudio", "pacat")]
    for name in (".venv/bin/python", "bin/node", "bin/npm", *browsers):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            '#!/usr/bin/env bash\nprintf "%s\\n" "loop=${TEST_LOOP:-}" "coverage=${TEST_COVERAGE:-}" "$@"\n'
        )
        path.chmod(0o755)
    return folder


def asked(checkout: Path, *arguments: str, **environment: str) -> list[str]:
    """The event loop and the coverage that `scripts/test` chose, then the arguments that it gave to Python."""
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    printed = subprocess.run(
        ["bash", checkout / "scripts" / "test", *arguments],
        env={"PATH": path, "HOME": str(checkout), "CHROMIUM": "chromium", "FIREFOX": "firefox", **environment},
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    return printed.stdout.splitlines()


def test_whole_run_checks_coverage(checkout: Path) -> None:
    arguments = asked(checkout)
    assert arguments[:2] == ["loop=", "coverage=floor"]
    assert arguments[-2:] == ["-p", "tests.support.coverage"]


@pytest.mark.parametrize("chosen", [("-k", "chain"), ("tests/relay",), ("-x",)])
def test_partial_run_checks_no_coverage_floor(checkout: Path, chosen: tuple[str, ...]) -> None:
    arguments = asked(checkout, *chosen)
    assert arguments[1] == "coverage="
    assert arguments[-len(chosen) :] == list(chosen)
    assert "tests.support.coverage" not in arguments


def test_partial_run_reports_when_asked(checkout: Path) -> None:
    arguments = asked(checkout, "-k", "chain", TEST_COVERAGE="report")
    assert arguments[1] == "coverage=report"
    assert arguments[-4:] == ["-p", "tests.support.coverage", "-k", "chain"]


def test_fast_run_selects_its_tests(checkout: Path) -> None:
    arguments = asked(checkout, "--fast", "-k", "chain")
    assert arguments[:2] == ["loop=uvloop", "coverage="]
    assert "not browser and not postgres and not slow" in arguments
    assert arguments[-2:] == ["-k", "chain"]
    assert asked(checkout, "--fast", TEST_LOOP="asyncio")[0] == "loop=asyncio"


def test_long_builds_run_when_asked(checkout: Path) -> None:
    arguments = asked(checkout, "--bundlers", "-x")
    assert arguments[1] == "coverage="
    assert arguments[-4:] == ["-m", "bundlers", "tests/web/test_bundlers.py", "-x"]


@dataclass(eq=False)
class Item:
    """What the hooks of tests/conftest.py use of a pytest item."""

    nodeid: str
    fixturenames: Sequence[str] = ()
    params: dict[str, str] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)

    @property
    def callspec(self) -> "Item":
        return self

    @property
    def name(self) -> str:
        return self.nodeid.rpartition("::")[2]

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.marks.add(mark.name)

    def iter_markers(self) -> Iterator[pytest.Mark]:
        return (getattr(pytest.mark, name).mark for name in tuple(self.marks))


def collected(*items: Item) -> list[Item]:
    """What is left of the items after the hook."""
    left: Any = list(items)
    pytest_collection_modifyitems(MagicMock(), left)
    return list(left)


def test_marks_follow_path_and_fixtures() -> None:
    plain = Item("tests/memory/test_ordering.py::test_x")
    browser = Item("tests/web/test_embed.py::test_x")
    slow = Item(f"{_SLOW[0]}[a-b]")
    by_fixture = Item("tests/memory/test_ordering.py::test_y", fixturenames=["tmp_path", "postgres"])
    by_store = Item("tests/memory/test_ordering.py::test_z", params={"database_url": "postgresql"})
    engine = Item("tests/web/test_embed.py::test_y[firefox-vite]")
    assert group_of(engine.nodeid) == "firefox"
    assert collected(engine) == [engine]
    assert engine.marks == {"browser", "engines", "filterwarnings", "flaky"}
    items = [plain, browser, slow, by_fixture, by_store]
    assert collected(*items) == items
    on_postgres = {"postgres", "flaky"}
    in_browser = {"browser", "filterwarnings", "flaky"}
    assert [item.marks for item in items] == [set(), in_browser, {"slow", "flaky"}, on_postgres, on_postgres]


def test_chosen_loop_replaces_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    on_both = [Item("tests/a.py::test_x[asyncio-1]"), Item("tests/a.py::test_x[uvloop-1]")]
    on_one = [Item("tests/a.py::test_y[uvloop]"), Item("tests/a.py::test_z"), Item("tests/a.py::test_z[2]")]
    monkeypatch.setattr("tests.conftest._LOOP", "")  # the run that tests this may have chosen one
    assert collected(*on_both, *on_one) == [*on_both, *on_one]
    monkeypatch.setattr("tests.conftest._LOOP", "asyncio")
    assert collected(*on_both, *on_one) == [on_both[0], *on_one]


def test_unknown_loop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conftest._LOOP", "trio")
    with pytest.raises(pytest.UsageError, match="TEST_LOOP is asyncio or uvloop"):
        pytest_configure(MagicMock())


def test_collection_selects_by_marks() -> None:
    """With pytest itself: the marks are there before `-m` selects by them."""
    chosen = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "postgres",
         "tests/doctor/test_stores.py"],
        cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": ""}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert chosen.returncode == 0, chosen.stdout + chosen.stderr
    names = [line.rpartition("::")[2] for line in chosen.stdout.splitlines() if "::" in line]
    assert names == ["test_postgresql_revision_is_read", "test_missing_postgresql_database_fails"]


def test_every_slow_test_exists() -> None:
    for entry in _SLOW:
        path, _, name = entry.partition("::")
        assert (ROOT / path).exists(), entry
        assert not name or f"def {name}(" in (ROOT / path).read_text(), entry
