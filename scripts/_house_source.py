# ruff: noqa: INP001  # a script, no package
"""What can be measured of the code without running it: names, functions, comments, imports, references to documents."""

import ast
import io
import re
import subprocess
import tokenize
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = [
    "Module",
    "abstract_methods",
    "comment_lines",
    "cycles",
    "functions",
    "imports",
    "longest_chain",
    "loose_modules",
    "outside_references",
    "private_called_once",
    "read_modules",
    "repeated",
    "subpackage_sizes",
    "test_names",
    "undocumented",
]

Function = ast.FunctionDef | ast.AsyncFunctionDef

_PRAGMA = re.compile(r"#\s*(noqa|type:|fmt:|ruff:|mypy:|pragma|pylint:|!)")
_TEST = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)
# A file's name, or a way to cite documents outside the repository. `[s]` and `[d]` keep this line from matching itself.
_DOCUMENT = re.compile(
    r"(?<![\w/.*<-])((?:[\w.-]+/)*[\w-][\w.-]*\.md)\b|\b[Cc]ontract(?:'s)? §|\bSOP\b|-fact[s] §|(?<![\w/-])share[d]/"
)
_MAY_NAME_ONE = re.compile(r"\.md| §|\bSOP|share[d]/")  # _DOCUMENT is slow on long lines, such as minified scripts
_TEXT = {".py", ".md", ".js", ".ts", ".html", ".css", ".toml", ".yaml", ".yml", ".bicep", ".sh", ""}


@dataclass(frozen=True)
class Module:
    """One file: its dotted name and its text. A package's `__init__` has the package's name."""

    name: str
    path: Path
    text: str

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the tree. Several measures need them, and walking is what costs most."""
        return list(ast.walk(self.tree))


def read_modules(root: Path, packages: Iterable[str]) -> list[Module]:
    """Every module of the packages, by name."""
    found = []
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module(name, path, path.read_text()))
    return found


def loose_modules(modules: Iterable[Module], package: str) -> list[str]:
    """Modules that lie in the package itself and in none of its subpackages."""
    return [m.name for m in modules if not m.is_package and m.name.rpartition(".")[0] == package]


def subpackage_sizes(modules: Iterable[Module], package: str) -> Counter[str]:
    """How many modules lie directly in each subpackage, `__init__` aside."""
    parents = (m.name.rpartition(".")[0] for m in modules if not m.is_package)
    return Counter(parent for parent in parents if parent.startswith(f"{package}."))


def repeated(names: Iterable[str]) -> list[str]:
    """The names that are there twice or more."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def module_names(modules: Iterable[Module]) -> list[str]:
    return [m.path.stem for m in modules if not m.is_package]


def class_names(modules: Iterable[Module]) -> list[str]:
    return [node.name for m in modules for node in m.nodes if isinstance(node, ast.ClassDef)]


def functions(module: Module) -> list[Function]:
    """All functions, methods and nested functions."""
    return [node for node in module.nodes if isinstance(node, Function)]


def abstract_methods(modules: Iterable[Module]) -> dict[str, set[str]]:
    """The abstract methods of each class that has some."""
    found = defaultdict(set)
    for node in (each for m in modules for each in m.nodes if isinstance(each, ast.ClassDef)):
        for method in _methods(node):
            if any(isinstance(mark, ast.Name) and mark.id == "abstractmethod" for mark in method.decorator_list):
                found[node.name].add(method.name)
    return dict(found)


def private_called_once(module: Module, abstract: Mapping[str, Collection[str]]) -> list[str]:
    """Private functions and methods that their module names in one place only, beside where they are defined.

    What a base class calls and its kinds implement cannot be inlined: `abstract` are those methods, by class.
    """
    used = Counter(
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in module.nodes
        if isinstance(node, ast.Attribute | ast.Name)
    )
    hooks = set()
    for node in (each for each in module.nodes if isinstance(each, ast.ClassDef)):
        families = [node.name, *(base.id for base in node.bases if isinstance(base, ast.Name))]
        hooks |= {f for f in _methods(node) if any(f.name in abstract.get(family, ()) for family in families)}
    private = [f for f in functions(module) if f.name.startswith("_") and not f.name.startswith("__")]
    return [f.name for f in private if used[f.name] == 1 and f not in hooks]


def _methods(node: ast.ClassDef) -> list[Function]:
    return [each for each in node.body if isinstance(each, Function)]


def comment_lines(module: Module) -> int:
    """Lines with a comment that speaks to a reader, not to a tool."""
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    return sum(token.type == tokenize.COMMENT and not _PRAGMA.match(token.string) for token in tokens)


def long_functions(module: Module, lines: int) -> list[str]:
    return [f.name for f in functions(module) if (f.end_lineno or f.lineno) - f.lineno + 1 > lines]


def undocumented(module: Module) -> tuple[list[str], int]:
    """Public functions, methods and classes without a docstring, and how many public ones there are."""
    public = [node for node in _public(module.tree.body) if not node.name.startswith("_")]
    return [node.name for node in public if ast.get_docstring(node) is None], len(public)


def _public(body: Iterable[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    for node in body:
        if isinstance(node, Function):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node
            yield from _public(node.body)


def imports(root: Path, modules: Iterable[Module]) -> dict[str, set[str]]:
    """Which module imports which, those of functions and of type checkers among them."""
    import grimp

    packages = {m.name.partition(".")[0] for m in modules}
    graph = grimp.build_graph(*sorted(packages), cache_dir=str(root / "var" / "house"))
    return {name: set(graph.find_modules_directly_imported_by(name)) for name in graph.modules}


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other in a circle."""
    return sorted(sorted(group) for group in _components(graph) if len(group) > 1)


def longest_chain(graph: Mapping[str, set[str]]) -> list[str]:
    """The longest way down the imports, as its modules; a circle counts with all of its modules."""
    components = _components(graph)  # each after all that it imports
    group_of = {name: number for number, group in enumerate(components) for name in group}
    best: list[list[str]] = []
    for number, group in enumerate(components):
        below = {group_of[target] for name in group for target in graph[name] if target in group_of} - {number}
        best.append(sorted(group) + max((best[other] for other in below), key=len, default=[]))
    return max(best, key=len, default=[])


def _components(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Tarjan's strongly connected components; what is imported comes before what imports it."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in sorted(graph[name] & graph.keys()):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            cut = stack.index(name)
            found.append(stack[cut:])
            del stack[cut:]

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


def test_names(modules: Iterable[Module]) -> list[str]:
    return [name for m in modules for name in _TEST.findall(m.text)]


def outside_references(files: Mapping[str, str]) -> dict[str, list[str]]:
    """By file: the documents that it names and that are not among the files."""
    here = {Path(name).name for name in files}
    found = defaultdict(list)
    for name, text in files.items():
        for line in text.splitlines():
            for match in _DOCUMENT.finditer(line) if _MAY_NAME_ONE.search(line) else ():
                if match[1] is None or Path(match[1]).name not in here:
                    found[name].append(match[0])
    return dict(found)


def tracked_files(root: Path) -> dict[str, str]:
    """The text of every file that Git knows, by its path."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True)  # noqa: S607
    paths = [root / name for name in listed.stdout.split("\0") if name]
    texts = (path for path in paths if path.suffix in _TEXT and path.is_file())
    return {str(path.relative_to(root)): path.read_text(errors="replace") for path in texts}
