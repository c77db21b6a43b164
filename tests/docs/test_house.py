"""`scripts/house` measures what it says, and the repository refers to no document that is not in it."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def house() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("_house")


@pytest.fixture(scope="module")
def source(house: ModuleType) -> ModuleType:
    return importlib.import_module("_house_source")


@pytest.fixture(scope="module")
def rows(house: ModuleType) -> dict[str, Any]:
    """The figures of this repository, by name."""
    return {row.name: row for row in house.rows(ROOT, run=False)}


def module(source: ModuleType, text: str, name: str = "package.module") -> Any:
    return source.Module(name, Path(f"{name.replace('.', '/')}.py"), text)


def test_loose_modules_and_subpackages(source: ModuleType, tmp_path: Path) -> None:
    for name in ("__init__", "one", "two", "inner/__init__", "inner/three"):
        path = tmp_path / "package" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    modules = source.read_modules(tmp_path, ["package"])
    assert source.loose_modules(modules, "package") == ["package.one", "package.two"]
    assert source.subpackage_sizes(modules, "package") == {"package.inner": 1}
    assert source.module_names(modules) == ["three", "one", "two"]


def test_private_function_used_once_is_counted(source: ModuleType) -> None:
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
    assert source.private_called_once(module(source, text), {}) == ["_once", "_method", "_handed_on"]


def test_method_of_each_kind_is_not_counted(source: ModuleType) -> None:
    """A base class calls what its kinds implement, which may stand in another module."""
    base = module(
        source,
        """
class Base(ABC):
    def run(self): return self._hook() + self._own()
    @abstractmethod
    def _hook(self): ...
    def _own(self): return 1
""",
    )
    kind = module(
        source, "class Kind(Base):\n    def _hook(self): return 2\n    def again(self): return self._hook()\n"
    )
    abstract = source.abstract_methods([base, kind])
    assert abstract == {"Base": {"_hook"}}
    assert source.private_called_once(base, abstract) == ["_own"]
    assert source.private_called_once(kind, abstract) == []
    assert source.private_called_once(kind, {}) == ["_hook"]


def test_pragmas_are_not_comments(source: ModuleType) -> None:
    text = (
        "#!/usr/bin/env python\nx = 1  # noqa: X\ny = 2  # type: ignore[x]\n# fmt: off\nz = '# text'  # why\n# more\n"
    )
    assert source.comment_lines(module(source, text)) == 2


def test_longest_chain_has_most_modules(source: ModuleType) -> None:
    graph = {"a": {"b", "d"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"d"}}
    assert source.longest_chain(graph) == ["a", "b", "c", "d"]
    assert source.cycles(graph) == []


def test_import_cycle_counts_whole(source: ModuleType) -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert source.cycles(graph) == [["b", "c"]]
    assert source.longest_chain(graph) == ["a", "b", "c", "d"]


def test_public_names_need_a_docstring(source: ModuleType) -> None:
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


def test_long_function_counts_its_first_line(source: ModuleType) -> None:
    text = "def short():\n" + "    x = 1\n" * 2 + "def long():\n" + "    x = 1\n" * 3
    assert source.long_functions(module(source, text), lines=3) == ["long"]


def test_repeated_names(source: ModuleType) -> None:
    assert source.repeated(["a", "b", "a", "c", "c", "c"]) == ["a", "c"]


# Put together here: written out they would be counted as references of this file's.
ELSEWHERE = "facts-elsewhere" + ".md"
SIGN = "\N{SECTION SIGN}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see docs/deploy.md", []),
        ("see [deploy](deploy.md#keys)", []),
        (f"see {ELSEWHERE} {SIGN}2", [ELSEWHERE]),
        (f"see other-facts {SIGN}2", [f"-facts {SIGN}"]),
        ("RFC 9457 §3.2", []),
        (f"the contract {SIGN}2", [f"contract {SIGN}"]),
        (f"Contract {SIGN}2: a ticket opens it", [f"Contract {SIGN}"]),
        ("the contract tests of picows", []),
        ("the {}'s route".format("SO" + "P"), ["SO" + "P"]),
        ("{}/seed".format("shared"), ["shared" + "/"]),
        ("tests/shared/names", []),
        ("every *.md file", []),
    ],
)
def test_outside_documents_are_found(source: ModuleType, text: str, found: list[str]) -> None:
    files = {"docs/deploy.md": "", "code.py": text}
    assert source.outside_references(files).get("code.py", []) == found


def test_no_file_names_an_outside_document(rows: dict[str, Any]) -> None:
    assert list(rows["documents"].counted) == []


def test_table_has_every_figure(rows: dict[str, Any]) -> None:
    assert rows.keys() >= {"loose", "chain", "cycles", "once", "comments", "tests", "documents"}


def test_every_target_holds(rows: dict[str, Any]) -> None:
    assert [str(row) for row in rows.values() if not row.met] == []


@pytest.mark.parametrize(("value", "exit_code"), [(14, 0), (15, 1)])
def test_missed_target_fails_the_check(
    house: ModuleType, value: int, exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = house.Row("chain", "modules in the longest chain of imports", value, 14)
    monkeypatch.setattr(house, "rows", lambda _root, run: [row])
    monkeypatch.setattr(sys, "argv", ["scripts/house", "--check"])
    assert house.main() == exit_code
    assert capsys.readouterr().out.rstrip().endswith("missed") == bool(exit_code)


@pytest.mark.slow
def test_request_passes_the_modules_it_must(house: ModuleType) -> None:
    """In a process of its own: it profiles all threads."""
    program = "import json, _house_requests as r; print(json.dumps({k: sorted(v) for k, v in r.measure(%r).items()}))"
    ran = subprocess.run(
        [sys.executable, "-c", program % (("token_broker", "strategies"),)],
        cwd=SCRIPTS, env={"PYTHONPATH": f"{ROOT}", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    passed = json.loads(ran.stdout)
    assert "strategies.routes" in passed["token"]
    assert "strategies.routes" not in passed["turn"]
    assert any("zep" in name for name in passed["turn"])
    assert not any("zep" in name for name in passed["token"])
    assert {name: modules for name, modules in passed.items() if len(modules) > house.MOST_PASSED[name]} == {}
