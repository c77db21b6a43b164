"""Branch coverage at a tenth of the usual cost: the code of our packages marks what ran, and coverage.py reports it.

coverage.py's own tracer is called for each line of each library, which doubles the CPU time of the tests (before
Python 3.14, where it need not be). Here an import hook sets a mark before each statement of the packages in
`[tool.coverage.run]`. `start` must come before they are imported. Each test process sends its marks to the first one,
which makes coverage.py's data of them.
"""

import ast
import functools
import io
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import coverage
import pytest

__all__ = ["Coverage", "Mark", "add_marks", "arcs_of", "start"]

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("strategies", "token_broker")
_NAME = "_marks_of_coverage"
"""The global of a marked module with a list of what has run: a store into a list is the quickest note there is."""

_OTHER = 0
"""Where a branch goes that has one way besides those named."""


@dataclass(slots=True)
class Mark:
    """What has run where this mark is set."""

    lines: list[int] = field(default_factory=list)
    branches: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Marking:
    """Sets marks in a syntax tree; `marks` are their meanings, in order."""

    marks: list[Mark] = field(default_factory=list)

    def block(self, body: list[ast.stmt], entered: Mark | None = None, *, documented: bool = False) -> None:
        """Marks each statement of a block; the first one also says what `entered` does."""
        mark = entered or Mark()
        marked: list[ast.stmt] = []
        for number, statement in enumerate(body):
            if isinstance(statement, ast.Global | ast.Nonlocal) or (documented and number == 0 and _is_text(statement)):
                marked.append(statement)  # no code
                continue
            mark.lines += _lines(statement)
            if not _is_of_the_future(statement):
                marked.append(self._set(mark, statement))
                self._inside(statement)
                mark = Mark()
            marked.append(statement)
        body[:] = marked

    def _set(self, mark: Mark, at: ast.stmt) -> ast.stmt:
        self.marks.append(mark)
        place: Any = {
            "lineno": at.lineno, "col_offset": at.col_offset,
            "end_lineno": at.lineno, "end_col_offset": at.col_offset,
        }  # fmt: skip
        number = ast.Constant(len(self.marks) - 1, **place)
        target = ast.Subscript(ast.Name(_NAME, ast.Load(), **place), number, ast.Store(), **place)
        return ast.Assign([target], ast.Constant(value=True, **place), **place)

    def _inside(self, statement: ast.stmt) -> None:
        match statement:
            case ast.If() | ast.While() | ast.For() | ast.AsyncFor():
                line = statement.lineno
                self.block(statement.body, Mark(branches=[(line, _first(statement.body))]))
                if statement.orelse:
                    self.block(statement.orelse, Mark(branches=[(line, _first(statement.orelse))]))
                else:
                    statement.orelse.append(self._set(Mark(branches=[(line, _OTHER)]), statement))
            case ast.Match():
                self._cases(statement)
            case ast.Try() | ast.TryStar():
                self.block(statement.body)
                tried = Mark()
                for handler in statement.handlers:
                    _next_choice(tried, handler.lineno)
                    self.block(handler.body, _chosen(tried, handler.body))
                self.block(statement.orelse)
                self.block(statement.finalbody)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self.block(statement.body, documented=True)
            case ast.With() | ast.AsyncWith():
                self.block(statement.body)

    def _cases(self, statement: ast.Match) -> None:
        tried = Mark()
        for case in statement.cases:
            _next_choice(tried, case.pattern.lineno)
            self.block(case.body, _chosen(tried, case.body))
        if not _is_irrefutable(statement.cases[-1]):
            tried.branches.append((tried.lines[-1], _OTHER))
            nothing = ast.MatchAs()
            ast.copy_location(nothing, statement)
            statement.cases.append(ast.match_case(nothing, body=[self._set(tried, statement)]))


def _next_choice(tried: Mark, line: int) -> None:
    """Notes that the next of several, `except` or `case`, was looked at."""
    if tried.lines:
        tried.branches.append((tried.lines[-1], line))
    tried.lines.append(line)


def _chosen(tried: Mark, body: Sequence[ast.stmt]) -> Mark:
    return Mark(list(tried.lines), [*tried.branches, (tried.lines[-1], _first(body))])


def _is_irrefutable(case: ast.match_case) -> bool:
    pattern = case.pattern
    if isinstance(pattern, ast.MatchOr):
        pattern = pattern.patterns[-1]
    return case.guard is None and isinstance(pattern, ast.MatchAs) and pattern.pattern is None


def _is_of_the_future(statement: ast.stmt) -> bool:
    """Whether no other code may stand before this."""
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _lines(statement: ast.stmt) -> list[int]:
    return [*(decorator.lineno for decorator in getattr(statement, "decorator_list", ())), statement.lineno]


def _first(body: Sequence[ast.stmt]) -> int:
    return _lines(body[0])[0]


def add_marks(source: bytes, path: str) -> tuple[ast.Module, list[Mark]]:
    """The syntax tree of a module with marks in it, and what each of them means."""
    tree = ast.parse(source, path)
    marking = _Marking()
    marking.block(tree.body, documented=True)
    return tree, marking.marks


_ran: dict[str, list[bool]] = {}
"""What has run in this process: by path, and there by the number of the mark."""


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree, marks = add_marks(self.get_data(path), path)
        _ran[path] = [False] * len(marks)
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        code = self.get_code(module.__name__)
        setattr(module, _NAME, _ran[self.get_filename(module.__name__)])
        exec(code, module.__dict__)  # noqa: S102  # as every loader does


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in _PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def start() -> "Coverage | None":
    """Marks what is imported from now on, if TEST_COVERAGE asks for it; returns a plugin for pytest then."""
    if not (wanted := os.environ.get("TEST_COVERAGE", "")):
        return None
    if wanted not in {"floor", "report"}:
        raise pytest.UsageError(f"TEST_COVERAGE is floor or report, not {wanted!r}")
    too_early = [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]
    assert not too_early, f"imported before they could be measured: {too_early}"
    sys.meta_path.insert(0, _Finder())
    return Coverage(floor=wanted == "floor")


class Coverage:
    """Gathers what ran in all test processes, and reports it; with `floor`, less than `fail_under` is a failure."""

    def __init__(self, *, floor: bool) -> None:
        self._floor = floor
        self._ran: dict[str, set[int]] = {}
        self._text = io.StringIO()

    def add(self, ran: Mapping[str, bytes]) -> None:
        """Adds what ran in a process: by path, a byte a mark."""
        for path, marks in ran.items():
            self._ran.setdefault(path, set()).update(number for number, mark in enumerate(marks) if mark)

    def report(self, out: Any) -> float:
        """Writes coverage.py's report; returns its percentage."""
        measured = coverage.Coverage()
        # Each file is parsed for what could run, above all: once for the marks and the report.
        measured._get_file_reporter = functools.cache(measured._get_file_reporter)  # type: ignore[method-assign]
        measured.erase()
        data = measured.get_data()
        files = [str(path) for package in _PACKAGES for path in (_ROOT / package).rglob("*.py")]
        data.add_arcs({path: list(arcs_of(path, self._ran.get(path, ()), measured)) for path in files})
        data.touch_files(files)  # those that nothing was imported of
        measured.save()
        return measured.report(file=out)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        ran = {path: bytes(marks) for path, marks in _ran.items()}
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["coverage"] = ran
            return
        self.add(ran)
        percent = self.report(self._text)
        wanted = coverage.Coverage().config.fail_under
        if self._floor and round(percent, 1) < wanted:
            self._text.write(f"The coverage is below fail_under in pyproject.toml: {percent:.1f} < {wanted:g}.\n")
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        self.add(getattr(node, "workeroutput", {}).get("coverage", {}))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("branch coverage")
        terminalreporter.write(self._text.getvalue())


def arcs_of(path: str, ran: Iterable[int], measured: coverage.Coverage) -> Iterator[tuple[int, int]]:
    """What ran in a file, as coverage.py writes it: pairs of lines that ran one after the other."""
    _, marks = add_marks(Path(path).read_bytes(), path)
    reporter = measured._get_file_reporter(path)
    branches = [reporter.translate_arcs(mark.branches) for mark in marks]
    ways: dict[int, set[int]] = {}
    for start_line, end_line in reporter.arcs():
        ways.setdefault(start_line, set()).add(end_line)
    for start_line, end_line in itertools.chain.from_iterable(branches):
        ways.get(start_line, set()).discard(end_line)  # the others are left
    for number in ran:
        for line in marks[number].lines:
            yield -1, line
        for start_line, end_line in branches[number]:
            if end_line != _OTHER:
                yield start_line, end_line
            else:
                yield from ((start_line, other) for other in ways.get(start_line, ()))
