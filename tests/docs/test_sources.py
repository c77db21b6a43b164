"""Relative links lead to files that exist, and anchors to their headings.

Sections of docs/azure.md and docs/api.md that files cite exist, and so do the decisions and the files that are named.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NUMBERED = ("azure.md", "api.md")

_FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`)(?:(?!\n *\n).)*?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_SECTION_REFERENCE = re.compile(r"docs/(azure|api)\.md((?:[ ,]*(?:and )?§\d+(?:\.\d+)?)+)")
_READ = {".py", ".js", ".mjs", ".ts", ".md", ".toml", ".bicep", ".yaml", ".sh", ".html"}
_NOT_OURS = {".git", ".venv", "var", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them: a repeated one gets a number."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.*?)(?: +#+)? *$", _FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(page: Path) -> Iterator[str]:
    """Targets of its relative links, those in code left out."""
    text = _CODE.sub("", _FENCE.sub("", page.read_text("utf-8")))
    for target in _LINK.findall(text):
        if not re.match(r"[a-z][a-z0-9+.-]*:|//", target):
            yield target


_NUMBERED_LINK = re.compile(r"\[[^\]]*§(\d+(?:\.\d+)?)\]\([^)#]*#(\d+)-")


def broken(page: Path) -> Iterator[str]:
    for target in links(page):
        path, _, anchor = target.partition("#")
        leads_to = (page.parent / path).resolve() if path else page
        if not leads_to.exists() or not leads_to.is_relative_to(ROOT):
            yield f"{target}: there is no such file"
        elif anchor and leads_to.suffix == ".md" and anchor not in anchors(leads_to):
            yield f"{target}: there is no such heading"


def test_relative_links_resolve() -> None:
    assert {name_of(page): found for page in PAGES if (found := list(broken(page)))} == {}


def test_link_to_a_section_shows_its_number() -> None:
    shown = [(name_of(page), *link) for page in PAGES for link in _NUMBERED_LINK.findall(page.read_text("utf-8"))]
    assert [(page, number) for page, number, anchor in shown if number.replace(".", "") != anchor] == []


def test_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "README.md"
    page.write_text(
        "# One `thing` (of two)\n\n[a](#one-thing-of-two) [b](#two) [c](gone) [d](README.md#no) [e](https://x.example)\n"
        "\n```text\n[f](gone)\n# Not a heading\n```\n\n`[g](gone)` [h](../README.md) [i](#one-thing-of-two-1)\n\n"
        "## One thing of two\n"
    )
    assert [line.partition(":")[0] for line in broken(page)] == ["#two", "gone", "README.md#no", "../README.md"]


def repository_files() -> Iterator[Path]:
    pending = [ROOT]
    while pending:
        for entry in pending.pop().iterdir():
            if entry.name in _NOT_OURS:
                continue
            if entry.is_dir():
                pending.append(entry)
            elif entry.suffix in _READ and not entry.name.startswith("package-lock"):
                yield entry


_NAMED_FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|js|bicep|toml|yaml))`")
_OTHERS_FILES = {"docs/azure.md", "tests/simulator/recordings/README.md"}  # they name files of other repositories
_MADE = {  # by `token-broker demo` and by scripts/pack-client
    "bundle/voice-talk.js",
    "node_modules/voice-session/audio/worklets.js",
    "var/demo-agents.toml",
    "var/demo-resources.toml",
}


def test_named_files_exist() -> None:
    """A file may be named by the end of its path."""
    texts = {name_of(path): path for path in repository_files()}
    named = {
        (reader, file)
        for reader, path in texts.items()
        if reader not in _OTHERS_FILES
        for file in _NAMED_FILE.findall(path.read_text("utf-8", errors="replace"))
    }
    ends = {"/".join(parts[at:]) for parts in (name.split("/") for name in texts) for at in range(len(parts))}
    assert sorted((reader, file) for reader, file in named if file not in ends | _MADE) == []


def sections(page: str) -> set[str]:
    text = _FENCE.sub("", (ROOT / "docs" / page).read_text("utf-8"))
    return set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", text, re.MULTILINE))


@pytest.mark.parametrize("page", NUMBERED)
def test_sections_are_numbered_in_order(page: str) -> None:
    text = _FENCE.sub("", (ROOT / "docs" / page).read_text("utf-8"))
    numbers = [
        tuple(map(int, number.split("."))) for number in re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", text, re.MULTILINE)
    ]
    assert numbers == sorted(set(numbers))
    tops = [number[0] for number in numbers if len(number) == 1]
    assert tops == list(range(1, len(tops) + 1))


def test_cited_sections_exist() -> None:
    known = {page: sections(f"{page}.md") for page in ("azure", "api")}
    missing = [
        f"{name_of(path)}: docs/{page}.md §{number}"
        for path in repository_files()
        for page, named in _SECTION_REFERENCE.findall(path.read_text("utf-8", errors="replace"))
        for number in re.findall(r"§(\d+(?:\.\d+)?)", named)
        if number not in known[page]
    ]
    assert missing == []


DECISION_PAGES = sorted(DECISIONS.glob("[0-9]*.md"))


def test_every_decision_is_in_the_index() -> None:
    index = (DECISIONS / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.*) \|$", index, re.MULTILINE)
    titles = [
        re.sub(r"^# (\d{4})\. (.*)$", r"\2", page.read_text("utf-8").partition("\n")[0]) for page in DECISION_PAGES
    ]
    expected = [(page.name[:4], page.name, title) for page, title in zip(DECISION_PAGES, titles, strict=True)]
    assert rows == expected
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))


def test_decisions_have_headings_and_real_paths() -> None:
    for page in DECISION_PAGES:
        text = page.read_text("utf-8")
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "Reason", "Consequences"], page.name
        status = r"^Status: (accepted, \d{4}-\d\d-\d\d|proposed|replaced by \[?\d{4}.*)$"
        assert re.search(status, text, re.MULTILINE), page.name
        named = re.findall(r"`((?:tests|token_broker|strategies|scripts)/[\w./-]+)[^`]*`", text)
        assert [path for path in named if not (ROOT / path).exists()] == [], page.name
