"""The snippets of docs/clients.md."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["PAGE", "Snippet", "of_kind", "snippets"]

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"


@dataclass(frozen=True, slots=True)
class Snippet:
    heading: str
    kind: str
    code: str


def snippets() -> list[Snippet]:
    """Every code block of the page, with its heading."""
    found = []
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        found += [Snippet(section.partition("\n")[0], kind, code) for kind, code in blocks]
    return found


def of_kind(*kinds: str) -> pytest.MarkDecorator:
    """Runs a test with each snippet of these kinds."""
    chosen = [snippet for snippet in snippets() if snippet.kind in kinds]
    return pytest.mark.parametrize("snippet", chosen, ids=[snippet.heading for snippet in chosen])
