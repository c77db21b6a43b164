"""The runbook and the security page name only what there is, and every trouble that doctor names."""

import re
from pathlib import Path

import pytest

from token_broker.doctor.checks import Trouble
from token_broker.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = ("runbook.md", "security.md")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_trouble_of_the_sop_has_its_place_in_the_runbook() -> None:
    headings = re.findall(r"^### (.*)$", page("runbook.md"), re.MULTILINE)
    assert {trouble.value for trouble in Trouble} <= set(headings)


@pytest.mark.parametrize("name", PAGES)
def test_every_variable_named_is_one(name: str) -> None:
    named = set(re.findall(r"\b(?:BROKER|AZURE|ZEP)_[A-Z_]+", page(name)))
    assert named
    assert named <= {field.alias for field in Settings.model_fields.values()}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_within_the_page_leads_somewhere(name: str) -> None:
    text = page(name)
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors(text)


@pytest.mark.parametrize("name", PAGES)
def test_every_test_named_is_there(name: str) -> None:
    missing = [path for path in re.findall(r"`(tests/[a-z_/.]+)`", page(name)) if not (ROOT / path).exists()]
    assert missing == []
