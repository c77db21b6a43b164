"""azd's files: parameters exist, their variables are set by something, and secrets are made once and not kept."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.infra.bicep import INFRA, ROOT, Template

AZURE_YAML = (ROOT / "azure.yaml").read_text()
HOOKS = INFRA / "hooks"


def parameters(name: str) -> dict[str, str]:
    """Parameter and the value that azd fills in."""
    read = json.loads((INFRA / f"{name}.parameters.json").read_text())["parameters"]
    return {parameter: item["value"] for parameter, item in read.items()}


@pytest.mark.parametrize("name", ["main", "broker"])
def test_azd_gives_every_required_parameter(name: str) -> None:
    declared = Template(INFRA / f"{name}.bicep").parameters
    given = parameters(name)
    assert {parameter for parameter, item in declared.items() if item.value is None} <= given.keys() <= declared.keys()


@pytest.mark.parametrize("name", ["main", "broker"])
def test_azd_has_the_templates_defaults(name: str) -> None:
    declared = Template(INFRA / f"{name}.bicep").parameters
    for parameter, value in parameters(name).items():
        own = declared[parameter].value
        if (default := re.fullmatch(r"\$\{\w+=(.*)\}", value)) and own is not None:
            assert own.text == f"'{default[1]}'".encode(), parameter


def test_variables_without_default_are_set() -> None:
    azds_own = {"AZURE_ENV_NAME", "AZURE_LOCATION", "SERVICE_BROKER_IMAGE_NAME"}
    outputs = Template(INFRA / "main.bicep").outputs.keys()
    for name in ("main", "broker"):
        for value in parameters(name).values():
            if needed := re.fullmatch(r"\$\{(\w+)\}", value):
                assert needed[1] in azds_own | outputs | {"BROKER_AUTH"}


def test_shared_variables_mean_the_same() -> None:
    def variables(name: str) -> dict[str, str]:
        return {value.strip("${}").partition("=")[0]: parameter for parameter, value in parameters(name).items()}

    main, broker = variables("main"), variables("broker")
    assert {name: main[name] for name in main.keys() & broker.keys()} == {
        name: broker[name] for name in main.keys() & broker.keys()
    }


def test_service_template_and_tag_agree() -> None:
    (service,) = re.findall(r"^services:\n  (\w+):", AZURE_YAML, flags=re.MULTILINE)
    assert (INFRA / f"{service}.bicep").is_file()
    assert f"'azd-service-name': '{service}'" in (INFRA / "modules" / "backend-aca.bicep").read_text()


def test_files_in_azure_yaml_exist() -> None:
    for path in re.findall(r"(?:run|path): (\./\S+)", AZURE_YAML):
        assert (ROOT / path).is_file(), path


@pytest.fixture
def azd(tmp_path: Path) -> Path:
    """A directory with an `azd` that writes down what it is asked to set."""
    program = tmp_path / "azd"
    program.write_text(f'#!/bin/sh\necho "$3=$4" >>{tmp_path}/set\n')
    program.chmod(0o755)
    return tmp_path


def run_hook(name: str, azd: Path, **environment: str) -> tuple[int, dict[str, str]]:
    """Exit code, and what the hook had azd remember."""
    (azd / "set").unlink(missing_ok=True)
    done = subprocess.run(
        [HOOKS / f"{name}.sh"],
        env={"PATH": f"{azd}:{os.environ['PATH']}", **environment},
        capture_output=True,
        check=False,
    )
    remembered = (azd / "set").read_text().splitlines() if (azd / "set").exists() else []
    return done.returncode, dict(line.split("=", 1) for line in remembered)


def test_first_provisioning_makes_secrets(azd: Path) -> None:
    code, remembered = run_hook("preprovision", azd, BROKER_AUTH="entra")
    assert code == 0
    assert len(remembered["BROKER_SIGNING_KEY"]) >= 32
    assert "," not in remembered["BROKER_SIGNING_KEY"]
    assert len(remembered["BROKER_METRICS_TOKEN"]) >= 16


def test_secrets_are_not_made_again(azd: Path) -> None:
    given = {"BROKER_AUTH": "entra", "BROKER_SIGNING_KEY_STORED": "true", "BROKER_METRICS_TOKEN": "kept"}
    assert run_hook("preprovision", azd, **given) == (0, {})


def test_given_signing_key_is_kept(azd: Path) -> None:
    _, remembered = run_hook("preprovision", azd, BROKER_AUTH="entra", BROKER_SIGNING_KEY="new,old")
    assert "BROKER_SIGNING_KEY" not in remembered


def test_provisioning_needs_broker_auth(azd: Path) -> None:
    assert run_hook("preprovision", azd) == (1, {})
    assert run_hook("preprovision", azd, BROKER_AUTH="anybody") == (1, {})


@pytest.mark.parametrize(
    "addresses", ["203.0.113.9/32", "203.0.113.9/32,198.51.100.0/24", "203.0.113.9/32 , 10.0.0.0/8"]
)
def test_open_broker_accepts_addresses(addresses: str, azd: Path) -> None:
    code, _ = run_hook("preprovision", azd, BROKER_AUTH="none", BROKER_ALLOWED_ADDRESSES=addresses)
    assert code == 0


@pytest.mark.parametrize(
    "addresses",
    ["", "0.0.0.0/0", "203.0.113.9/32,0.0.0.0/0", "203.0.113.9", "everybody", "::/0", "1.2.3.4/32\n0.0.0.0/0"],
)
def test_open_broker_needs_real_addresses(addresses: str, azd: Path) -> None:
    assert run_hook("preprovision", azd, BROKER_AUTH="none", BROKER_ALLOWED_ADDRESSES=addresses) == (1, {})


def test_authentication_needs_no_addresses(azd: Path) -> None:
    assert run_hook("preprovision", azd, BROKER_AUTH="entra", BROKER_ALLOWED_ADDRESSES="")[0] == 0
    assert run_hook("preprovision", azd, BROKER_AUTH="entra", BROKER_ALLOWED_ADDRESSES="everybody") == (1, {})


def test_stored_signing_key_is_forgotten(azd: Path) -> None:
    assert run_hook("postprovision", azd, BROKER_SIGNING_KEY="k") == (
        0,
        {"BROKER_SIGNING_KEY": "", "BROKER_SIGNING_KEY_STORED": "true"},
    )
    assert run_hook("postprovision", azd) == (0, {})
