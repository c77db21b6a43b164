"""Every Bicep file by itself and with the others: it parses, names its sources, and wires all that it declares."""

import json
import re
from pathlib import Path

import pytest
from pycep import BicepParser
from tree_sitter import Node

from tests.infra.bicep import (
    INFRA,
    PARAMETER_FILES,
    TEMPLATES,
    Template,
    properties,
    read_parameters,
    template_of,
    walk,
)

all_templates = pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: str(path.relative_to(INFRA)))
all_parameter_files = pytest.mark.parametrize("path", PARAMETER_FILES, ids=lambda path: path.name)


@all_templates
def test_two_parsers_take_it(path: Path) -> None:
    text = path.read_text()
    assert Template(path).declarations
    assert BicepParser().parse(text=text)


@all_templates
def test_every_resource_stands_below_the_page_that_documents_its_type_and_version(path: Path) -> None:
    template = Template(path)
    lines = template.text.splitlines()
    for resource in template.resources.values():
        kind, _, version = resource.label.partition("@")
        provider, _, types = kind.partition("/")
        page = f"// https://learn.microsoft.com/azure/templates/{provider}/{version}/{types}".lower()
        assert lines[resource.line - 1].lower() == page, resource.name


@all_templates
def test_one_version_of_a_type_is_used_throughout(path: Path) -> None:
    versions = dict(resource.label.split("@") for other in TEMPLATES for resource in Template(other).resources.values())
    for resource in Template(path).resources.values():
        kind, _, version = resource.label.partition("@")
        assert versions[kind] == version


@all_templates
def test_parameters_variables_and_outputs_are_described_and_used(path: Path) -> None:
    template = Template(path)
    used = template.used_names()
    for item in [*template.parameters.values(), *template.outputs.values()]:
        assert "description" in item.decorators, item.name
    for name in [*template.parameters, *template.variables]:
        assert name in used, name


@all_templates
def test_a_secret_parameter_is_secure_and_has_no_value_of_its_own(path: Path) -> None:
    for name, item in Template(path).parameters.items():
        if re.search(r"(signingKey|metricsToken|ApiKey|databaseUrl)$", name):
            assert "secure" in item.decorators, name
            assert item.value is None or item.value.text == b"''", name


@all_templates
def test_each_module_gets_every_parameter_it_declares_and_no_other(path: Path) -> None:
    template = Template(path)
    for module in template.modules.values():
        callee = Template((path.parent / module.label).resolve())
        given = properties(properties(module.body)["params"])
        required = {name for name, item in callee.parameters.items() if item.value is None}
        assert required <= given.keys() <= callee.parameters.keys(), module.name


@all_templates
def test_outputs_of_modules_that_are_asked_for_exist(path: Path) -> None:
    template = Template(path)
    for symbol, name in re.findall(r"\b(\w+)!?\.outputs\.(\w+)", template.text):
        callee = Template((path.parent / template.modules[symbol].label).resolve())
        assert name in callee.outputs, f"{symbol}.outputs.{name}"


@all_templates
def test_a_module_has_no_name_of_its_own(path: Path) -> None:
    """Deployments that share a name fail when they run at once; the compiler makes names that differ."""
    for module in Template(path).modules.values():
        assert "name" not in properties(module.body), module.name


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
def test_no_api_version_is_older_than_two_years_where_a_newer_one_is_stable(path: Path) -> None:
    for resource in Template(path).resources.values():
        kind, _, version = resource.label.partition("@")
        if resource.label not in NEWEST_THERE_IS:
            assert version >= OLDEST.get(kind.partition("/")[0], "2024-11-28"), resource.label


@all_templates
def test_a_list_function_in_a_conditional_resource_has_the_condition_too(path: Path) -> None:
    """ARM works list functions out even where the resource's condition is false."""
    for resource in Template(path).resources.values():
        if resource.condition is None:
            continue
        for node in walk(resource.body):
            if node.type == "call_expression" and b".list" in (node.text or b"").partition(b"(")[0]:
                around = node
                while around.parent and around.type != "ternary_expression" and around != resource.body:
                    around = around.parent
                assert around.type == "ternary_expression", resource.name
                assert (around.named_children[0].text or b"?") in (resource.condition.text or b""), resource.name


def is_decorator(node: Node) -> bool:
    return node.parent is not None and node.parent.type == "decorator"


@all_templates
def test_a_ternary_or_a_call_fits_into_a_line(path: Path) -> None:
    """`bicep format` breaks longer ones, and checkov's parser takes none that is broken."""
    for node in walk(Template(path).root):
        is_long = node.start_point[0] != node.end_point[0] or node.end_point[1] > 120
        if node.type == "ternary_expression" or (node.type == "call_expression" and not is_decorator(node)):
            assert not is_long, (node.text or b"").decode()
        if node.type == "ternary_expression":
            assert all(part.type != "ternary_expression" for part in node.named_children), "one in another"


def test_the_compilers_rules_that_found_something_are_on() -> None:
    rules = json.loads((INFRA / "bicepconfig.json").read_text())["analyzers"]["core"]["rules"]
    for rule in ("use-recent-api-versions", "no-module-name", "no-hardcoded-env-urls", "use-safe-access"):
        assert rules[rule]["level"] in {"warning", "error"}, rule


def test_every_module_is_used() -> None:
    called = {
        (path.parent / module.label).resolve() for path in TEMPLATES for module in Template(path).modules.values()
    }
    assert called == set((INFRA / "modules").glob("*.bicep"))


def test_what_a_module_allows_its_caller_allows_too() -> None:
    """A wrong value is refused where it is typed, not three files further down."""
    for path in TEMPLATES:
        template = Template(path)
        for module in template.modules.values():
            callee = Template((path.parent / module.label).resolve())
            for name, value in properties(properties(module.body)["params"]).items():
                own = template.parameters.get((value.text or b"").decode())
                if own and callee.parameters[name].allowed:
                    assert own.allowed == callee.parameters[name].allowed, name


@all_parameter_files
def test_a_parameter_file_sets_all_that_is_required_with_allowed_values(path: Path) -> None:
    declared = Template(template_of(path)).parameters
    given = read_parameters(path)
    required = {name for name, item in declared.items() if item.value is None}
    assert required <= given.keys() <= declared.keys()
    for name, value in given.items():
        assert not declared[name].allowed or value in declared[name].allowed, name


@pytest.mark.parametrize("stage", ["dev", "staging", "production"])
def test_both_files_of_a_stage_agree_on_what_both_say(stage: str) -> None:
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


def test_every_answered_finding_says_why() -> None:
    answers = re.findall(r"checkov:skip=(\w+):?(.*)", "".join(path.read_text() for path in TEMPLATES))
    assert answers
    for finding, reason in answers:
        assert len(reason) > 20, finding
