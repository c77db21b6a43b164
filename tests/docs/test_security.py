"""docs/security.md names existing tests for each promise, and covers every section of the RFCs that it maps."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
PROMISES = TEXT.partition("## Promises")[2].partition("\n## ")[0]
REFERENCE = re.compile(r"`(tests/[\w/.-]+?)(?:::(\w+))?`")

RFC_10017 = [
    *("5.1.1", "5.1.2", "5.1.3", "5.1.4", "5.2.1", "5.2.2", "5.2.3"),
    *("6.1.1", "6.1.2", "6.1.3.1", "6.1.3.2", "6.1.3.3", "6.1.3.4", "6.1.3.5", "6.1.3.6", "6.1.3.7"),
    *("6.2.1", "6.2.2", "6.2.3.1", "6.2.3.2", "6.2.3.3", "6.2.3.4", "6.2.4", "6.3"),
    *("7.1", "7.2", "7.3", "7.4", "8.1", "8.6", "9.1", "9.2", "9.3", "9.4"),
]
RFC_8725 = [f"3.{number}" for number in range(1, 13)]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of the tables, without the header rows."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| promise", "| § ")):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def test_every_promise_names_a_test() -> None:
    found = list(rows(PROMISES))
    assert len(found) >= 30
    assert [row[0] for row in found if not REFERENCE.search(row[-1])] == []


def exists(path: str, name: str) -> bool:
    """Whether the file is there and, where a test is named, that test in it."""
    file = ROOT / path
    if not name:
        return file.exists()
    return file.is_file() and bool(re.search(rf"^(?:async )?def {name}\(", file.read_text(), re.MULTILINE))


def test_named_tests_exist() -> None:
    named = sorted(set(REFERENCE.findall(TEXT)))
    assert [each for each in named if not exists(*each)] == []
    assert not exists("tests/docs/test_security.py", "test_gone")
    assert not exists("tests/docs/test_gone.py", "")


@pytest.mark.parametrize(
    ("heading", "sections"), [("## RFC 10017", RFC_10017), ("## RFC 8725", RFC_8725)], ids=["10017", "8725"]
)
def test_every_section_of_an_rfc_is_covered(heading: str, sections: list[str]) -> None:
    chapter = TEXT.partition(heading)[2].partition("\n## ")[0]
    named = " ".join(row[0] for row in rows(chapter))
    assert [section for section in sections if not re.search(rf"(?<![\d.]){re.escape(section)}(?![\d.])", named)] == []
