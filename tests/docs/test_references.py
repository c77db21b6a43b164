"""No file refers to a document that is not in the repository: what the code rests on stands in docs/.

Goes to tests/docs/test_references.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_NOT_OURS = {
    ".git",
    ".venv",
    "var",
    "node_modules",
    "htmlcov",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
}
_NOT_TEXT = {".png", ".svg", ".ico", ".pcm", ".wav", ".pyc", ".db", ".lock"}
# What finds such references names them.
_FINDERS = {"tests/docs/test_references.py", "tests/docs/test_house.py", "scripts/_house_source.py"}

_ELSEWHERE = re.compile(
    r"azure-facts|\bcontract\.md|contract-2|\b[cC]ontract(?:'s)? §|\bhouse\.md|\bstyle\.md|\bpitfalls\.md|\bpeers\.md"
    r"|simulator-gaps|security-findings|browser-findings|reported-bugs|(?<![\w/-])shared/|\bSOP\b"
)
_ARCHITECTURE = re.compile(r"(?<!docs/)\barchitecture\.md")  # the one in docs/ is ours


def repository_files() -> Iterator[Path]:
    pending = [ROOT]
    while pending:
        for entry in pending.pop().iterdir():
            if entry.name in _NOT_OURS:
                continue
            if entry.is_dir() and not entry.is_symlink():
                pending.append(entry)
            elif entry.suffix not in _NOT_TEXT and entry.name != "package-lock.json" and entry.is_file():
                yield entry


def references(name: str, text: str) -> list[str]:
    """What the text names that is not in the repository, by line."""
    within_docs = name.startswith("docs/")
    return [
        f"{name}:{number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if _ELSEWHERE.search(line) or (not within_docs and _ARCHITECTURE.search(line))
    ]


def test_no_file_refers_to_a_document_that_is_not_here() -> None:
    found = []
    for path in repository_files():
        name = path.relative_to(ROOT).as_posix()
        if name not in _FINDERS:
            found += references(name, path.read_text("utf-8", errors="replace"))
    assert found == []


@pytest.mark.parametrize(
    ("name", "line", "is_elsewhere"),
    [
        ("a.py", "see azure-facts.md §2", True),
        ("a.py", "as contract §2 has it", True),
        ("a.py", "Contract §3: a ticket opens it", True),
        ("a.py", "the contract tests of picows", False),
        ("a.py", "the SOP's route", True),
        ("a.py", "architecture.md has the rooms", True),
        ("README.md", "[architecture](docs/architecture.md)", False),
        ("docs/memory.md", "[architecture](architecture.md)", False),
        ("a.py", "shared/seed", True),
        ("a.py", "tests/shared/names", False),
        ("a.py", "RFC 9457 §3.2", False),
        ("a.css", "style.css", False),
    ],
)
def test_references_are_told_from_what_is_here(name: str, line: str, is_elsewhere: bool) -> None:
    assert bool(references(name, line)) is is_elsewhere
