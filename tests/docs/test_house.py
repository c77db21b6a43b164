"""`scripts/house` counts what it says that it counts."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_house_source", ROOT / "scripts" / "_house_source.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def module(source: ModuleType, text: str, name: str = "package.module") -> Any:
    return source.Module(name, Path(f"{name.replace('.', '/')}.py"), text)


def test_modules_are_loose_or_in_a_subpackage(source: ModuleType, tmp_path: Path) -> None:
    for name in ("__init__", "one", "two", "inner/__init__", "inner/three"):
        path = tmp_path / "package" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    modules = source.read_modules(tmp_path, ["package"])
    assert source.loose_modules(modules, "package") == ["package.one", "package.two"]
    assert source.subpackage_sizes(modules, "package") == {"package.inner": 1}
    assert source.module_names(modules) == ["three", "one", "two"]


def test_private_function_used_once_is_counted_and_one_used_twice_is_not(source: ModuleType) -> None:
    text = """
def public(): return _once() + _twice() + _twice()
def _once(): return 1
def _twice(): return 2
def _never(): return 3
class Thing:
    def __init__(self): self._handed_on(self._method)
    def _method(self): return 4
    def _handed_on(self, what): return what
"""
    assert source.private_called_once(module(source, text)) == ["_once", "_method", "_handed_on"]


def test_comments_for_tools_are_not_counted(source: ModuleType) -> None:
    text = (
        "#!/usr/bin/env python\nx = 1  # noqa: X\ny = 2  # type: ignore[x]\n# fmt: off\nz = '# text'  # why\n# more\n"
    )
    assert source.comment_lines(module(source, text)) == 2


def test_longest_chain_takes_the_way_with_most_modules(source: ModuleType) -> None:
    graph = {"a": {"b", "d"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"d"}}
    assert source.longest_chain(graph) == ["a", "b", "c", "d"]
    assert source.cycles(graph) == []


def test_circle_of_imports_is_found_and_counts_whole(source: ModuleType) -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert source.cycles(graph) == [["b", "c"]]
    assert source.longest_chain(graph) == ["a", "b", "c", "d"]


def test_public_names_need_a_docstring_and_private_ones_do_not(source: ModuleType) -> None:
    text = '''
def told():
    """What it does."""
def silent(): ...
def _private(): ...
class Thing:
    """A thing."""
    def method(self): ...
class _Hidden:
    def method(self): ...
'''
    assert source.undocumented(module(source, text)) == (["silent", "method"], 4)


def test_functions_are_long_from_their_first_line_to_their_last(source: ModuleType) -> None:
    text = "def short():\n" + "    x = 1\n" * 2 + "def long():\n" + "    x = 1\n" * 3
    assert source.long_functions(module(source, text), lines=3) == ["long"]


def test_names_are_repeated_where_they_are_there_twice(source: ModuleType) -> None:
    assert source.repeated(["a", "b", "a", "c", "c", "c"]) == ["a", "c"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see docs/deploy.md", []),
        ("see [deploy](deploy.md#keys)", []),
        ("see facts-elsewhere.md", ["facts-elsewhere.md"]),
        ("RFC 9457 §3.2", []),
        ("the contract §2", ["contract §"]),
        ("every *.md file", []),
    ],
)
def test_documents_that_are_not_here_are_found(source: ModuleType, text: str, found: list[str]) -> None:
    files = {"docs/deploy.md": "", "code.py": text}
    assert source.outside_references(files).get("code.py", []) == found


def house(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "_house.py", *arguments],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_request_passes_the_modules_that_it_must() -> None:
    token, turn = (house("--list", name) for name in ("token", "turn"))
    assert token.returncode == turn.returncode == 0, token.stderr + turn.stderr
    assert "strategies.ga" in token.stdout.split()
    assert "strategies.ga" not in turn.stdout.split()
    assert any("zep" in name for name in turn.stdout.split())
    assert not any("zep" in name for name in token.stdout.split())


def test_table_has_every_figure_and_a_missed_target_fails_the_check() -> None:
    printed = house("--no-run", "--check")
    lines = printed.stdout.splitlines()
    assert {line.split()[0] for line in lines} >= {"loose", "chain", "cycles", "once", "comments", "tests", "documents"}
    assert printed.returncode == int(any(line.endswith("missed") for line in lines)), printed.stderr
