"""The table of Azure's models: the defaults do not retire soon, and the pages agree with the table."""

import re
from datetime import UTC, date, datetime, timedelta

import pytest

from strategies.models import Model, model_table
from tests.infra.bicep import ROOT

NOTICE = timedelta(days=60)
TABLE = model_table()
KINDS = ("realtime", "transcription")
AZURE = (ROOT / "docs" / "azure.md").read_text(encoding="utf-8")


def row(model: Model) -> str:
    """The model's row in docs/azure.md §7."""
    retires = " or ".join(day.isoformat() for day in model.retires) or "not in the schedule"
    regions = "as §7.2" if model.regions else "not listed"
    skus = ", ".join(f"`{sku}`" for sku in model.skus) or "not listed"
    deployed = " *" if TABLE.deployed.get(model.name) == model.version else ""
    return f"| {model.name} | {model.version}{deployed} | {model.state} | {retires} | {regions} | {skus} |"


@pytest.mark.parametrize("kind", KINDS)
def test_default_does_not_retire_soon(kind: str) -> None:
    """Fails in time to choose another one: put it and its dates into strategies/models.json."""
    model = TABLE.default(kind)
    assert model.retires, f"nobody knows when {model.name} {model.version} retires"
    assert model.retires[0] - datetime.now(UTC).date() > NOTICE, (
        f"{model.name} {model.version} retires on {model.retires[0]}"
    )


def test_deployed_versions_are_in_the_table() -> None:
    assert set(TABLE.deployed.items()) == {(model.name, model.version) for model in map(TABLE.default, KINDS)}


def test_rows_are_complete_and_distinct() -> None:
    assert len({(model.name, model.version) for model in TABLE.models}) == len(TABLE.models)
    for model in TABLE.models:
        assert model.kind in {*KINDS, "translation"}
        assert model.state in {"GA", "preview", "unknown"}
        assert list(model.retires) == sorted(model.retires)
        assert set(model.regions) <= TABLE.regions.keys()
        assert bool(model.regions) == bool(model.skus), model.name
        assert date.fromisoformat(model.version) <= TABLE.read_on


def test_rows_share_their_regions() -> None:
    """docs/azure.md names them once for every row, so no row may have others."""
    assert {model.regions for model in TABLE.models} == {(), tuple(TABLE.regions)}


def test_azure_page_shows_every_row() -> None:
    chapter = AZURE.partition("### 7.1 ")[2].partition("### 7.2 ")[0]
    shown = re.findall(r"^\| \S+ \| \d{4}-.*\|$", chapter, flags=re.MULTILINE)
    assert shown == [row(model) for model in TABLE.models]
    assert f"read on {TABLE.read_on}" in chapter


def test_azure_page_names_the_regions() -> None:
    chapter = AZURE.partition("### 7.2 ")[2].partition("### 7.3 ")[0]
    (line,) = re.findall(r"^Regions: (.*)\.$", chapter, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", line) == list(TABLE.regions)


def test_deploy_page_names_regions_and_versions() -> None:
    deploy = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (regions,) = re.findall(
        r"Quota for `gpt-realtime` in one of the regions that have it:\s(.*?)\.\n", deploy, re.DOTALL
    )
    assert re.findall(r"`(\w+)`", regions) == list(TABLE.regions)
    for name, version in TABLE.deployed.items():
        model = TABLE.find(name)
        assert model is not None
        assert f"`{name}` {version} (until {model.retires[0]})" in " ".join(deploy.split())


@pytest.mark.parametrize("page", ["runbook.md", "scaling.md"])
def test_pages_name_no_other_regions(page: str) -> None:
    text = " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())
    assert ", ".join(list(TABLE.regions.values())[:-1]) + f" and {list(TABLE.regions.values())[-1]}" in text
    assert "West US 3" not in text


def test_living_version_is_found_first() -> None:
    model = TABLE.find("gpt-4o-mini-transcribe")
    assert model is not None
    assert model.version == "2025-12-15"
    assert TABLE.find("contoso-voice") is None
