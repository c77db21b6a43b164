"""The runbook and the security page name only what exists, and every known issue of doctor's."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from token_broker.doctor.checks import KnownIssue
from token_broker.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = ("runbook.md", "security.md")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_runbook_has_every_known_issue() -> None:
    headings = re.findall(r"^### (.*)$", page("runbook.md"), re.MULTILINE)
    assert {known_issue.value for known_issue in KnownIssue} <= set(headings)


@pytest.mark.parametrize("name", PAGES)
def test_named_variables_exist(name: str) -> None:
    named = set(re.findall(r"\b(?:BROKER|AZURE|ZEP)_[A-Z_]+", page(name)))
    assert named
    assert named <= {field.alias for field in Settings.model_fields.values()}


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_page_lead_somewhere(name: str) -> None:
    text = page(name)
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors(text)


@pytest.mark.parametrize("name", PAGES)
def test_named_tests_exist(name: str) -> None:
    missing = [path for path in re.findall(r"`(tests/[a-z_/.]+)`", page(name)) if not (ROOT / path).exists()]
    assert missing == []


# --- alerts


def alert_names() -> set[str]:
    rules = yaml.safe_load((ROOT / "infra" / "alerts.yaml").read_text(encoding="utf-8"))
    return {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}


def alert_sections() -> dict[str, str]:
    alerts = page("runbook.md").partition("\n## Alerts\n")[2]
    return dict(re.findall(r"^### (\w+)\n\n(.*?)(?=\n### |\Z)", alerts, re.MULTILINE | re.DOTALL))


def said_by_doctor() -> set[str]:
    """The first word of each text in doctor's source, among them the names of its checks."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "token_broker" / "doctor").glob("*.py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return {node.value.split()[0] for node in nodes if isinstance(node.value, str) and node.value.strip()}


def test_alerts_and_sections_are_the_same() -> None:
    assert set(alert_sections()) == alert_names()


@pytest.mark.parametrize("name", sorted(alert_names()))
def test_alerts_section_begins_with_doctor(name: str) -> None:
    section = alert_sections()[name]
    assert section.startswith("Doctor: ")
    assert len(section) > 80, "and goes on with what to do"


def test_checks_that_the_runbook_quotes_exist() -> None:
    quoted = set(re.findall(r"`(?:FAIL|WARN|note) (\w+)", page("runbook.md")))
    assert len(quoted) > 10
    assert quoted <= said_by_doctor()
