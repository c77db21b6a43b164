"""The table of Azure's models: what is deployed by default lives on, and the documents say what the table says."""

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
def test_a_default_does_not_retire_within_sixty_days(kind: str) -> None:
    """Fails in time to choose another one: put it and its dates into strategies/models.json."""
    model = TABLE.default(kind)
    assert model.retires, f"nobody knows when {model.name} {model.version} retires"
    assert model.retires[0] - datetime.now(UTC).date() > NOTICE, (
        f"{model.name} {model.version} retires on {model.retires[0]}"
    )


def test_every_version_that_is_deployed_is_in_the_table() -> None:
    assert set(TABLE.deployed.items()) == {(model.name, model.version) for model in map(TABLE.default, KINDS)}


def test_rows_are_whole_and_differ() -> None:
    assert len({(model.name, model.version) for model in TABLE.models}) == len(TABLE.models)
    for model in TABLE.models:
        assert model.kind in {*KINDS, "translation"}
        assert model.state in {"GA", "preview", "unknown"}
        assert list(model.retires) == sorted(model.retires)
        assert set(model.regions) <= TABLE.regions.keys()
        assert bool(model.regions) == bool(model.skus), model.name
        assert date.fromisoformat(model.version) <= TABLE.read_on


def test_the_regions_that_are_listed_are_all_that_there_are() -> None:
    """docs/azure.md names them once for every row, so no row may have others."""
    assert {model.regions for model in TABLE.models} == {(), tuple(TABLE.regions)}


def test_the_facts_show_every_row_of_the_table_and_no_other() -> None:
    chapter = AZURE.partition("### 7.1 ")[2].partition("### 7.2 ")[0]
    shown = re.findall(r"^\| \S+ \| \d{4}-.*\|$", chapter, flags=re.MULTILINE)
    assert shown == [row(model) for model in TABLE.models]
    assert f"read on {TABLE.read_on}" in chapter


def test_the_facts_name_the_regions_of_the_table() -> None:
    chapter = AZURE.partition("### 7.2 ")[2].partition("### 7.3 ")[0]
    (line,) = re.findall(r"^Regions: (.*)\.$", chapter, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", line) == list(TABLE.regions)


def test_those_who_deploy_are_told_the_regions_and_the_versions() -> None:
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
def test_readers_are_told_no_other_regions(page: str) -> None:
    text = " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())
    assert ", ".join(list(TABLE.regions.values())[:-1]) + f" and {list(TABLE.regions.values())[-1]}" in text
    assert "West US 3" not in text


def test_a_version_that_lives_is_found_rather_than_one_that_is_retired() -> None:
    model = TABLE.find("gpt-4o-mini-transcribe")
    assert model is not None
    assert model.version == "2025-12-15"
    assert TABLE.find("contoso-voice") is None
