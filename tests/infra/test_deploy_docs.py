"""Commands and tables of docs/deploy.md against templates, parameters, files, variables and names."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.bicep import INFRA, ROOT, Template, evaluate, template_of
from token_broker.settings import Settings

DOCUMENT = (ROOT / "docs" / "deploy.md").read_text()


def commands() -> Iterator[str]:
    """Each command line of each block, continued lines put together."""
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", DOCUMENT, flags=re.MULTILINE | re.DOTALL):
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip())


def words(command: str) -> list[str]:
    return shlex.split(command.replace("<the broker's URL>", "<url>"), comments=True)


def options(command: str, name: str) -> list[str]:
    """All words that follow `--name`, up to the next option."""
    found: list[str] = []
    given = words(command)
    for index, word in enumerate(given):
        if word == name:
            rest = given[index + 1 :]
            found += rest[: next((n for n, other in enumerate(rest) if other.startswith("--")), len(rest))]
    return found


DEPLOYMENTS = [command[command.index("az deployment ") :] for command in commands() if "az deployment " in command]


def test_both_templates_have_commands() -> None:
    assert {options(command, "--template-file")[0] for command in DEPLOYMENTS} == {
        "infra/main.bicep",
        "infra/broker.bicep",
    }


@pytest.mark.parametrize("command", DEPLOYMENTS)
def test_files_and_parameters_exist(command: str) -> None:
    (file,) = options(command, "--template-file")
    template = Template(ROOT / file)
    for word in options(command, "--parameters"):
        name, is_value, value = word.partition("=")
        if is_value:
            assert name in template.parameters, name
            allowed = template.parameters[name].allowed
            assert not allowed or value in allowed, word
        else:
            assert template_of(ROOT / word) == template.path


@pytest.mark.parametrize("command", DEPLOYMENTS)
def test_deployment_has_the_templates_scope(command: str) -> None:
    (file,) = options(command, "--template-file")
    scope = re.search(r"^targetScope = '(\w+)'", (ROOT / file).read_text(), flags=re.MULTILINE)
    assert scope
    assert command.split()[2] == {"subscription": "sub", "resourceGroup": "group"}[scope[1]]


def test_queried_outputs_exist() -> None:
    for file, name in re.findall(r"--template-file (\S+)[^`]*?--query properties\.outputs\.(\w+)", DOCUMENT):
        assert name in Template(ROOT / file).outputs


def test_variables_are_exported_before_use() -> None:
    """`readEnvironmentVariable` without a default stops a deployment that lacks the variable."""
    exported: set[str] = set()
    for command in commands():
        exported |= set(re.findall(r"(\w+)=", command)) if command.startswith("export ") else set()
        for file in options(command, "--parameters"):
            if "=" not in file:
                needed = re.findall(r"readEnvironmentVariable\('(\w+)'\)", (ROOT / file).read_text())
                assert set(needed) <= exported, file


def test_resource_group_matches_main_bicep() -> None:
    (group,) = re.findall(r"RESOURCE_GROUP=(\S+)", DOCUMENT)
    main = Template(INFRA / "main.bicep")
    names = main.scope({"environmentName": "voice-staging", "location": "x"})
    made = next(line for line in main.text.splitlines() if line.strip().startswith("name: 'rg-"))
    assert group == made.strip().removeprefix("name: ").strip("'").replace(
        "${environmentName}", names["environmentName"]
    )


def test_app_name_matches_the_bicep() -> None:
    name = Template(INFRA / "modules" / "backend-aca.bicep").variables["appName"].value
    assert name is not None
    for command in commands():
        if command.startswith("az containerapp "):
            assert options(command, "--name") == [evaluate(name, {})]


def test_azd_variables_are_read() -> None:
    read = "".join(path.read_text() for path in (*INFRA.glob("*.parameters.json"), *(INFRA / "hooks").glob("*.sh")))
    table = re.search(r"\| `azd env set …` .*?\n\n", DOCUMENT, flags=re.DOTALL)
    assert table
    named = re.findall(r"azd env set (\w+)", DOCUMENT) + re.findall(
        r"`((?:BROKER|AZURE|ZEP|VOICE)_\w+)[ `]", "".join(line.split("|")[1] for line in table[0].splitlines() if line)
    )
    assert len(named) >= 8
    for name in named:
        assert re.search(rf"\b{name}\b", read), name


def test_azd_defaults_are_right() -> None:
    read = "".join(path.read_text() for path in INFRA.glob("*.parameters.json"))
    for name, default in re.findall(r"^\| `(\w+)` \| `([\w-]+)` \|", DOCUMENT, flags=re.MULTILINE):
        assert f"${{{name}={default}}}" in read, name


def test_container_variables_exist() -> None:
    known = {field.alias for field in Settings.model_fields.values()}
    runs = [command for command in commands() if command.startswith("docker run ")]
    assert runs
    for word in (word for run in runs for word in options(run, "--env")):
        if "=" in word or word.isupper():
            assert word.partition("=")[0] in known, word


def test_build_arguments_exist() -> None:
    declared = set(re.findall(r"^ARG (\w+)", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"--build-arg (\w+)=", DOCUMENT)
    assert named
    assert set(named) <= declared


def test_named_parameters_exist() -> None:
    declared = {name for path in INFRA.glob("*.bicep") for name in Template(path).parameters}
    for name in re.findall(r"`([a-z]+[A-Z]\w*)(?:=[a-z]+)?`", DOCUMENT):
        assert name in declared | {"terminationGracePeriodSeconds"}, name


def test_named_files_exist() -> None:
    for name in re.findall(r"`((?:infra|docs|parameters|hooks)/?[\w./-]*)`", DOCUMENT):
        assert (ROOT / name).exists() or (INFRA / name).exists(), name


def test_role_count_is_right() -> None:
    made = sum(
        path.read_text().count("'Microsoft.Authorization/roleAssignments@") for path in (INFRA / "modules").iterdir()
    )
    assert "four roles" in DOCUMENT
    assert made == 4


def test_inner_links_resolve() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in DOCUMENT.splitlines()
        if line.startswith("#")
    }
    for anchor in re.findall(r"\]\(#([\w-]+)\)", DOCUMENT):
        assert anchor in headings, anchor


def test_cost_sums_are_right() -> None:
    rows = re.findall(r"^\| .*? \| (.*?) \| (.*?) \| (.*?) \|$", DOCUMENT.partition("## Costs")[2], flags=re.MULTILINE)
    amounts = [[int(m[1]) if (m := re.search(r"(\d+)\**$", cell)) else 0 for cell in row] for row in rows]
    *parts, total = [row for row in amounts if any(row)]
    assert [sum(column) for column in zip(*parts, strict=True)] == total


def test_container_apps_price_is_right() -> None:
    (row,) = re.findall(r"^\| Container Apps: (.*)$", DOCUMENT, flags=re.MULTILINE)
    seconds = 30.4 * 86_400
    for replicas, cpu, memory, price in re.findall(r"(\d) . \(([\d.]+), ([\d.]+)\): (\d+)", row):
        monthly = int(replicas) * seconds * (float(cpu) * 0.000024 + float(memory) * 0.000003)
        assert abs(monthly - int(price)) < 1.5, monthly


def test_parameter_files_exist() -> None:
    for stage in ("dev", "staging", "production"):
        assert Path(INFRA / "parameters" / f"{stage}.bicepparam").is_file()
        assert Path(INFRA / "parameters" / f"{stage}.broker.bicepparam").is_file()
