"""Our packages' code with slipcover's probes in it, made once for each state of a source file.

slipcover parses, compiles and rewrites each module in each process that imports it: 7 s of CPU for all of them. Here
the rewritten code is kept beside Python's own bytecode caches, and only the probes themselves are a process's own.
"""

import ast
import concurrent.futures
import contextlib
import importlib.util
import marshal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import slipcover
from slipcover import branch
from slipcover import slipcover as implementation
from slipcover.version import __version__

__all__ = ["Draft", "Finder", "draft_of", "make_drafts"]

_SIGNAL = "a draft's call of a probe"
_PROBE = "a draft's probe"
_MAKING = importlib.util.source_hash(Path(__file__).read_bytes() + __version__.encode())


@dataclass(frozen=True, slots=True)
class Draft:
    """A module's code with placeholders for probes, and its lines and branches that can run."""

    code: CodeType
    lines: frozenset[int]
    branches: frozenset[tuple[int, int]]


def draft_of(path: Path) -> Draft:
    """The draft of a source file: as kept, or else made, and kept where Python may write bytecode."""
    source = path.read_bytes()
    state = importlib.util.MAGIC_NUMBER + _MAKING + importlib.util.source_hash(source)
    cache = importlib.util.cache_from_source(str(path), optimization="slipcover")
    with contextlib.suppress(OSError):
        kept = Path(cache).read_bytes()
        if kept.startswith(state):
            origin, *parts = marshal.loads(kept[len(state) :])  # noqa: S302  # as Python's own cache beside it
            if origin == str(path):  # a checkout that was moved has its old paths in its code
                return Draft(*parts)
    draft = _make(source, path)
    if not sys.dont_write_bytecode:
        parts = (str(path), draft.code, draft.lines, draft.branches)
        SourceFileLoader("", str(path)).set_data(cache, state + marshal.dumps(parts))  # at once, or not at all
    return draft


def make_drafts(paths: Sequence[Path], processes: int) -> None:
    """Makes the drafts that are not kept, on several processors, before several processes each make all of them."""
    if sys.dont_write_bytecode:
        return
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        for _ in pool.map(_keep, (paths[at::processes] for at in range(processes))):
            pass


def _keep(paths: Iterable[Path]) -> None:
    for path in paths:
        draft_of(path)


def _make(source: bytes, path: Path) -> Draft:
    code = compile(branch.preinstrument(ast.parse(source)), str(path), "exec")
    drafter = _Drafter(branch=True)
    return Draft(
        drafter.instrument(code) if sys.version_info < (3, 12) else code,
        frozenset(drafter.lines_from_code(code)),
        frozenset(drafter.branches_from_code(code)),
    )


class _Drafter(slipcover.Slipcover):  # type: ignore[misc]  # it ships no types
    """Puts placeholders where slipcover puts probes. From Python 3.12 on there is nothing to put in: it has events."""

    if sys.version_info < (3, 12):
        _placeholders = SimpleNamespace(signal=_SIGNAL, new=lambda _measured, _file, what, _threshold: (_PROBE, what))
        instrument = FunctionType(
            slipcover.Slipcover.instrument.__code__,
            {**vars(implementation), "probe": _placeholders},
            argdefs=slipcover.Slipcover.instrument.__defaults__,
        )


def _measuring(code: CodeType, measured: slipcover.Slipcover) -> CodeType:
    """A draft's code with probes that tell `measured`."""
    if sys.version_info >= (3, 12):
        measured.instrument(code, parent=code)  # as what is inside another's code, whose lines are known
        return code
    probe = implementation.probe

    def filled(constant: Any) -> Any:
        if isinstance(constant, CodeType):
            return _measuring(constant, measured)
        if constant == _SIGNAL:
            return probe.signal
        if isinstance(constant, tuple) and constant[:1] == (_PROBE,):
            return probe.new(measured, code.co_filename, constant[1], measured.d_miss_threshold)
        return constant

    return code.replace(co_consts=tuple(map(filled, code.co_consts)))


class _Loader(SourceFileLoader):
    """Loads a module with probes that tell `measured`."""

    def __init__(self, name: str, path: str, measured: slipcover.Slipcover) -> None:
        super().__init__(name, path)
        self._measured = measured

    def get_code(self, fullname: str) -> CodeType:
        return _measuring(draft_of(Path(self.path)).code, self._measured)


class Finder:
    """Finds our packages' modules, for `sys.meta_path`, where they lie in `folders` (by package)."""

    def __init__(self, measured: slipcover.Slipcover, folders: Mapping[str, Path]) -> None:
        self._measured = measured
        self._folders = folders

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        folder = self._folders.get(name.partition(".")[0])
        spec = PathFinder.find_spec(name, path, target) if folder else None
        if spec is None or folder is None or not isinstance(spec.loader, SourceFileLoader):
            return None
        if Path(spec.loader.path).is_relative_to(folder):
            spec.loader = _Loader(name, spec.loader.path, self._measured)
        return spec
