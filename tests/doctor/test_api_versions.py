"""Doctor, the simulator and the pages agree with docs/azure.md on the api-versions."""

import re
from pathlib import Path

import pytest

from tests.doctor.support import settings_for
from token_broker.doctor.checks import CheckStatus
from token_broker.doctor.configuration import VOICE_LIVE_API_VERSIONS, judge_api_version
from token_broker.simulator import SimulatorConfig

DOCS = Path(__file__).parents[2] / "docs"
STABLE = [version for version, state in VOICE_LIVE_API_VERSIONS.items() if state == "stable"]


@pytest.mark.parametrize(
    ("version", "status", "word"),
    [
        ("2025-10-01", CheckStatus.OK, "stable"),
        ("2026-07-15", CheckStatus.OK, "stable"),
        ("2026-01-01-preview", CheckStatus.NOTE, "preview"),
        ("2026-06-01-preview", CheckStatus.NOTE, "preview"),
        ("2026-07-31-preview", CheckStatus.WARNING, "SIP"),
        ("2025-05-01-preview", CheckStatus.NOTE, "Voice Live is asked with 2025-10-01"),
        ("2024-10-01-preview", CheckStatus.OK, "Voice Live is asked with 2025-10-01"),
        ("2031-01-01", CheckStatus.WARNING, "not a version that this broker knows"),
    ],
)
def test_api_version_is_judged(version: str, status: CheckStatus, word: str) -> None:
    check = judge_api_version(settings_for("http://127.0.0.1:1", api_version=version))
    assert (check.status, check.value) == (status, version)
    assert word in check.finding
    assert bool(check.remediation) == (status is CheckStatus.WARNING)


def test_doctor_knows_the_documented_versions() -> None:
    chapter = (DOCS / "azure.md").read_text(encoding="utf-8").partition("### 6.1 ")[2].partition("### 6.2 ")[0]
    rows = re.findall(r"^\| (`?v?\d[^|]*?) \| (.*) \|$", chapter, flags=re.MULTILINE)
    states = {
        version.strip("`"): "stable" if state.startswith("stable") else state
        for versions, state in rows
        for version in versions.split(", ")
    }
    assert states.keys() - {"v1"} == VOICE_LIVE_API_VERSIONS.keys()
    for version, state in VOICE_LIVE_API_VERSIONS.items():
        said = {"stable": "stable", "SIP only": "SIP only", "preview": "", "replaced": "the first public one"}[state]
        assert said in states[version], version
        assert version.endswith("-preview") == (state != "stable"), version


@pytest.mark.parametrize("page", ["runbook.md", "api.md"])
def test_pages_name_every_stable_version(page: str) -> None:
    names = [f"`{version}`" for version in STABLE]
    text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
    assert f"stable versions are {', '.join(names[:-1])} and {names[-1]}" in text


def test_simulator_accepts_what_clients_dial() -> None:
    previews = {"2025-05-01-preview", "2026-01-01-preview"}  # Azure's own Python client dials them (docs/azure.md §6.1)
    assert SimulatorConfig().voice_live_api_versions == {*STABLE, *previews}
