"""What the Bicep compiler does not check: sources, versions, secrets, and values that two files share.

`scripts/infra-check compiler` checks syntax, types, required and unused parameters, outputs and module names.
"""

import json
import re
from pathlib import Path

import pytest
from pycep import BicepParser

from tests.infra.bicep import (
    INFRA,
    TEMPLATES,
    Template,
    read_parameters,
)
from token_broker.resources import read_resources
from token_broker.settings import Settings

all_templates = pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: str(path.relative_to(INFRA)))


@pytest.mark.slow
@all_templates
def test_checkovs_parser_accepts_it(path: Path) -> None:
    """checkov skips a file that this parser can't read, and then reports nothing about it."""
    assert BicepParser().parse(text=path.read_text())


@all_templates
def test_resource_names_its_documentation(path: Path) -> None:
    template = Template(path)
    lines = template.text.splitlines()
    for resource in template.resources.values():
        kind, _, version = resource.label.partition("@")
        provider, _, types = kind.partition("/")
        page = f"// https://learn.microsoft.com/azure/templates/{provider}/{version}/{types}".lower()
        assert lines[resource.line - 1].lower() == page, resource.name


@all_templates
def test_each_type_has_one_api_version(path: Path) -> None:
    versions = dict(resource.label.split("@") for other in TEMPLATES for resource in Template(other).resources.values())
    for resource in Template(path).resources.values():
        kind, _, version = resource.label.partition("@")
        assert versions[kind] == version


@all_templates
def test_parameters_and_outputs_are_described(path: Path) -> None:
    template = Template(path)
    for item in [*template.parameters.values(), *template.outputs.values()]:
        assert "description" in item.decorators, item.name


@all_templates
def test_secret_parameters_are_secure(path: Path) -> None:
    for name, item in Template(path).parameters.items():
        if re.search(r"(signingKey|metricsToken|ApiKey|databaseUrl)$", name):
            assert "secure" in item.decorators, name
            assert item.value is None or item.value.text == b"''", name


OLDEST = {
    "Microsoft.Network": "2025-05-01",
    "Microsoft.Resources": "2025-04-01",
    "Microsoft.DBforPostgreSQL": "2025-08-01",
    "Microsoft.KeyVault": "2026-02-01",
}
NEWEST_THERE_IS = {  # older than two years, and nothing stable came after them
    "Microsoft.Authorization/roleAssignments@2022-04-01",
    "Microsoft.Insights/diagnosticSettings@2021-05-01-preview",
    "Microsoft.Network/privateDnsZones@2024-06-01",
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01",
    "Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30",
}


@all_templates
def test_api_versions_are_recent(path: Path) -> None:
    for resource in Template(path).resources.values():
        kind, _, version = resource.label.partition("@")
        if resource.label not in NEWEST_THERE_IS:
            assert version >= OLDEST.get(kind.partition("/")[0], "2024-11-28"), resource.label


def test_compiler_rules_are_on() -> None:
    rules = json.loads((INFRA / "bicepconfig.json").read_text())["analyzers"]["core"]["rules"]
    for rule in ("use-recent-api-versions", "no-module-name", "no-hardcoded-env-urls", "use-safe-access"):
        assert rules[rule]["level"] in {"warning", "error"}, rule


def test_every_module_is_used() -> None:
    called = {
        (path.parent / module.label).resolve() for path in TEMPLATES for module in Template(path).modules.values()
    }
    assert called == set((INFRA / "modules").glob("*.bicep"))


@pytest.mark.parametrize("stage", ["dev", "staging", "production"])
def test_files_of_a_stage_agree(stage: str) -> None:
    foundation = read_parameters(INFRA / "parameters" / f"{stage}.bicepparam")
    broker = read_parameters(INFRA / "parameters" / f"{stage}.broker.bicepparam")
    shared = (Template(INFRA / "main.bicep").parameters.keys() & Template(INFRA / "broker.bicep").parameters.keys()) - {
        "location"  # the broker's is its resource group's
    }
    defaults = {
        name: (foundation_default.value.text, broker_default.value.text)
        for name in shared
        if (foundation_default := Template(INFRA / "main.bicep").parameters[name]).value
        and (broker_default := Template(INFRA / "broker.bicep").parameters[name]).value
    }
    assert all(one == other for one, other in defaults.values())
    assert {name: foundation.get(name) for name in shared} == {name: broker.get(name) for name in shared}


def test_suppressed_findings_say_why() -> None:
    answers = re.findall(r"checkov:skip=(\w+):?(.*)", "".join(path.read_text() for path in TEMPLATES))
    assert answers
    for finding, reason in answers:
        assert len(reason) > 20, finding


def test_example_of_resources_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    example = INFRA / "examples" / "resources.toml"
    entries = read_resources(example)
    for name in {entry.key_env for entry in entries if entry.key_env}:
        monkeypatch.setenv(name, "0123456789abcdef0123456789abcdef")
    loaded = Settings.load(_env_file=None, resources_file=example)
    assert [(each.name, each.entry.priority, each.entry.weight) for each in loaded.resources] == [
        ("eastus2", 1, 3),
        ("centralus", 1, 1),
        ("swedencentral", 2, 1),
    ]
