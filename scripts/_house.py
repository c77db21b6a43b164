# ruff: noqa: INP001, T201  # a script: it prints
"""Prints how easily one finds one's way in the code: each figure, its target, and whether it is met."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import _house_requests as requests
import _house_source as source

ROOT = Path(__file__).resolve().parents[1]
MAIN = "token_broker"
PACKAGES = (MAIN, "strategies")
LONG_FUNCTION = 30
MOST_PASSED = {"token": 29, "turn": 20}
"""Modules that a request may pass, by the row's name; the first was raised by docs/decisions/0064."""


@dataclass(frozen=True)
class Row:
    """One figure. `counted` is what it counts, for `--list`."""

    name: str
    title: str
    value: float
    target: float
    unit: str = ""
    at_least: bool = False
    counted: Sequence[str] = field(default=())

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target

    def __str__(self) -> str:
        bound = f"{'≥' if self.at_least else '≤'} {self.target:g}{self.unit}"
        value = f"{self.value:.1f}".removesuffix(".0") + self.unit
        return f"{self.name:<12} {self.title:<58} {value:>8}   {bound:>8}   {'' if self.met else 'missed'}"


def rows(root: Path, *, run: bool = True) -> list[Row]:
    """Every figure of the checkout at `root`; those that need a running broker only if `run`."""
    modules = source.read_modules(root, PACKAGES)
    tests = source.read_modules(root, ["tests"])
    return [
        *_packages(modules),
        *_imports(root, modules),
        *_functions(modules),
        *_names(modules, tests),
        *_prose(modules, source.tracked_files(root)),
        *(_hops() if run else ()),
    ]


def _packages(modules: list[source.Module]) -> list[Row]:
    loose = source.loose_modules(modules, MAIN)
    sizes = source.subpackage_sizes(modules, MAIN)
    ((_, largest),) = sizes.most_common(1)
    listed = [f"{count:3} {name}" for name, count in sizes.most_common()]
    return [
        Row("loose", f"loose modules in {MAIN}/", len(loose), 6, counted=loose),
        Row("subpackage", "modules in the largest subpackage", largest, 14, counted=listed),
    ]


def _imports(root: Path, modules: list[source.Module]) -> list[Row]:
    graph = source.imports(root, modules)
    chain, circles = source.longest_chain(graph), source.cycles(graph)
    return [
        Row("chain", "modules in the longest chain of imports", len(chain), 14, counted=chain),
        Row("cycles", "circles of imports", len(circles), 0, counted=[" ".join(circle) for circle in circles]),
    ]


def _functions(modules: list[source.Module]) -> list[Row]:
    total = sum(len(source.functions(m)) for m in modules)
    abstract = source.abstract_methods(modules)
    once = [f"{m.name}.{name}" for m in modules for name in source.private_called_once(m, abstract)]
    long = [f"{m.name}.{name}" for m in modules for name in source.long_functions(m, LONG_FUNCTION)]
    title = "private functions used in one place, of all functions"
    return [
        Row("once", title, 100 * len(once) / total, 12, " %", counted=once),
        Row("long", f"functions over {LONG_FUNCTION} lines", 100 * len(long) / total, 6, " %", counted=long),
    ]


def _names(modules: list[source.Module], tests: list[source.Module]) -> list[Row]:
    same_modules = source.repeated(source.module_names(modules))
    same_classes = source.repeated(source.class_names(modules))
    names = sorted(source.test_names(tests), key=len, reverse=True)
    return [
        Row("modules", "module names used twice or more", len(same_modules), 5, counted=same_modules),
        Row("classes", "class names used twice or more", len(same_classes), 3, counted=same_classes),
        Row("tests", "characters in a test's name, median", statistics.median(map(len, names)), 40, counted=names),
    ]


def _prose(modules: list[source.Module], files: dict[str, str]) -> list[Row]:
    lines = sum(len(m.text.splitlines()) for m in modules)
    comments = sum(source.comment_lines(m) for m in modules)
    silent = [f"{m.name}.{name}" for m in modules for name in source.undocumented(m)[0]]
    public = sum(source.undocumented(m)[1] for m in modules)
    outside = source.outside_references(files)
    named = [f"{name}: {', '.join(references)}" for name, references in outside.items()]
    return [
        Row("comments", "lines with a comment", 100 * comments / lines, 2.5, " %", at_least=True),
        Row("docstrings", "public names with a docstring", 100 - 100 * len(silent) / public, 80, " %",
            at_least=True, counted=silent),
        Row("documents", "references to documents that are not in the repository", sum(map(len, outside.values())), 0,
            counted=named),
    ]  # fmt: skip


def _hops() -> list[Row]:
    passed = requests.measure(PACKAGES)
    return [
        Row("token", "modules that POST /realtime/token passes", len(passed["token"]), MOST_PASSED["token"],
            counted=sorted(passed["token"])),
        Row("turn", "modules that a turn passes on its way to Zep", len(passed["turn"]), MOST_PASSED["turn"],
            counted=sorted(passed["turn"])),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/house", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--list", metavar="NAME", help="print what one figure counts, by the name in the first column")
    parser.add_argument("--no-run", action="store_true", help="leave out the figures that need a running broker")
    arguments = parser.parse_args()
    measured = rows(ROOT, run=not arguments.no_run)
    if arguments.list:
        chosen = [row for row in measured if row.name == arguments.list]
        if not chosen:
            parser.error(f"no figure {arguments.list}; there are {', '.join(row.name for row in measured)}")
        print(*chosen[0].counted, sep="\n")
        return 0
    print(*measured, sep="\n")
    return int(arguments.check and not all(row.met for row in measured))


if __name__ == "__main__":
    sys.exit(main())
