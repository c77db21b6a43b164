"""`scripts/test` asks pytest for what its comment says, and tests get their marks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import _SLOW
from tests.docs.test_commands import make_checkout

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose Python prints its arguments, and in which no browser is to be installed."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    make_checkout(folder)
    for name in (".venv/bin/python", "bin/node", "bin/npm"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "loop=${TEST_LOOP:-}" "$@"\n')
        path.chmod(0o755)
    return folder


def asked(checkout: Path, *arguments: str, **environment: str) -> list[str]:
    """What `scripts/test` hands to Python, behind the event loop that it chose."""
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    printed = subprocess.run(
        ["bash", checkout / "scripts" / "test", *arguments],
        env={"PATH": path, "HOME": str(checkout), "CHROMIUM": "chromium", **environment},
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    return printed.stdout.splitlines()


def test_whole_run_measures_coverage_and_checks_its_floor(checkout: Path) -> None:
    arguments = asked(checkout)
    assert "--cov" in arguments
    assert not any(argument.startswith("--cov-fail-under") for argument in arguments)
    assert arguments[0] == "loop="


@pytest.mark.parametrize("chosen", [("-k", "chain"), ("tests/relay",), ("-x",), ("--cov", "tests/relay")])
def test_run_of_some_tests_checks_no_floor(checkout: Path, chosen: tuple[str, ...]) -> None:
    arguments = asked(checkout, *chosen)
    assert "--cov-fail-under=0" in arguments
    assert arguments[-len(chosen) :] == list(chosen)
    assert ("--cov" in arguments) == ("--cov" in chosen)


def test_fast_run_leaves_out_browsers_slow_tests_and_the_second_loop(checkout: Path) -> None:
    arguments = asked(checkout, "--fast", "-k", "chain")
    assert arguments[0] == "loop=uvloop"
    assert "not browser and not postgres and not slow" in arguments
    assert arguments[-2:] == ["-k", "chain"]
    assert "--cov" not in arguments
    assert asked(checkout, "--fast", TEST_LOOP="asyncio")[0] == "loop=asyncio"


def collected(*arguments: str, **environment: str) -> list[str]:
    printed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": "", **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert printed.returncode in {0, 5}, printed.stdout + printed.stderr
    return [line for line in printed.stdout.splitlines() if "::" in line]


def test_marks_follow_the_path_and_the_fixtures() -> None:
    paths = ("tests/memory/test_ordering.py", "tests/memory/test_checkpoints.py", "tests/memory/test_kill.py")
    browser = "tests/web/test_embed.py"
    assert {name.partition("::")[0] for name in collected("-m", "browser", *paths, browser)} == {browser}
    on_postgres = collected("-m", "postgres", *paths)
    assert any(name.startswith("tests/memory/test_kill.py") for name in on_postgres)
    assert not any("sqlite" in name for name in on_postgres)
    assert not any("postgresql" in name for name in collected("-m", "not postgres", *paths))


def test_every_test_that_is_called_slow_is_there() -> None:
    for entry in _SLOW:
        path, _, name = entry.partition("::")
        assert (ROOT / path).exists(), entry
        assert not name or f"def {name}(" in (ROOT / path).read_text(), entry


def test_one_loop_is_taken_where_tests_run_on_both() -> None:
    path = "tests/relay/test_fast_path.py"
    on_both, on_asyncio = collected(path, TEST_LOOP=""), collected(path, TEST_LOOP="asyncio")
    assert any("uvloop" in name for name in on_both)
    assert on_asyncio == [name for name in on_both if "uvloop" not in name]
    assert {name.replace("asyncio", "uvloop") for name in on_asyncio} == {
        name.replace("asyncio", "uvloop") for name in on_both
    }


def test_unknown_loop_is_refused() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/docs/test_scripts.py"],
        cwd=ROOT, env={**os.environ, "TEST_LOOP": "trio"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert printed.returncode == pytest.ExitCode.USAGE_ERROR
    assert "TEST_LOOP is asyncio or uvloop" in printed.stderr
