"""The doctor checks each of several resources the way it is used, and what agents are kept to."""

from pathlib import Path

from tests.doctor.support import Tokens, diagnose, failed, named
from tests.support.agents import write_agents
from tests.support.resources import settings_of, simulator
from token_broker.doctor.checks import CheckStatus
from token_broker.simulator import RunningSimulator

AGENTS = """
default = "elena"
[agents.elena]
name = "Elena"
voices = { ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }
instructions = "You are Elena."
zones = ["eu"]
"""


async def test_each_resource_is_checked(tmp_path: Path) -> None:
    async with simulator("one") as azure, simulator("two", deployments=frozenset({"other"})) as lacking:
        endpoints = {"one": azure.base_url, "two": lacking.base_url}
        settings = settings_of(tmp_path, endpoints, {"two": {"zone": "eu"}})
        report = await diagnose(settings)
        assert named(report, "one: mint ga").status is CheckStatus.OK
        assert named(report, "one: configuration").status is CheckStatus.OK
        wrong = failed(report)
        assert "two: mint ga" in wrong
        assert not [name for name in wrong if name.startswith("one: ")]


async def test_residency_is_no_promise_of_azure(azure: RunningSimulator, tmp_path: Path) -> None:
    agents = write_agents(tmp_path, AGENTS)
    settings = settings_of(tmp_path, {"one": azure.base_url}, {"one": {"zone": "eu"}}, agents_file=agents)
    check = named(await diagnose(settings, source=Tokens()), "residency")
    assert (check.status, "Global deployment" in check.finding) == (CheckStatus.NOTE, True)
    settings = settings_of(tmp_path, {"one": azure.base_url}, {"one": {"zone": "us"}}, agents_file=agents)
    check = named(await diagnose(settings, source=Tokens()), "residency")
    assert (check.status, "agents.elena" in check.finding) == (CheckStatus.FAILED, True)


async def test_doctor_keeps_residency(tmp_path: Path) -> None:
    agents = write_agents(tmp_path, AGENTS)
    async with simulator("one") as forbidden, simulator("two") as azure:
        endpoints = {"one": forbidden.base_url, "two": azure.base_url}
        zones = {"one": {"zone": "us"}, "two": {"zone": "eu"}}
        report = await diagnose(settings_of(tmp_path, endpoints, zones, agents_file=agents), connect=True)
        check = named(report, "one: agents")
        assert (check.status, "no agent may use" in check.finding) == (CheckStatus.WARNING, True)
        assert named(report, "two: mint ga").status is CheckStatus.OK
        assert not forbidden.requests


async def test_advice_names_the_files_keys(tmp_path: Path) -> None:
    async with simulator("one") as azure, simulator("two", deployments=frozenset({"other"})) as lacking:
        endpoints = {"one": azure.base_url, "two": lacking.base_url}
        report = await diagnose(settings_of(tmp_path, endpoints, {}))
    advice = [check.remediation for check in report.checks if check.name.startswith(("one: ", "two: "))]
    assert any("resources.two.endpoint" in text for text in advice)
    assert not [text for text in advice if "AZURE_VOICELIVE_" in text]
