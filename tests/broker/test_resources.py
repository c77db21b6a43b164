"""Several resources behind one broker: plans name theirs, the operator switches them, residency holds."""

import json
from pathlib import Path

import pytest

from tests.observability.scrape import scrape
from tests.support.broker import environment, run_command
from tests.support.resources import SeveralResources, key_variables, resources_file, run_resources
from tests.support.waiting import eventually
from token_broker.sessions.agents import AgentsFileError

AGENTS = """
default = "elena"
[agents.elena]
name = "Elena"
voices = { ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }
instructions = "You are Elena."
[agents.greta]
name = "Greta"
inherits = "elena"
zones = ["eu"]
model = "gpt-realtime-mini"
"""
ZONES = {"one": {"zone": "us"}, "two": {"zone": "eu"}}


@pytest.fixture
def agents_file(tmp_path: Path) -> Path:
    path = tmp_path / "agents.toml"
    path.write_text(AGENTS)
    return path


def asked(several: SeveralResources, name: str) -> list[str]:
    """What that resource was asked for; the broker's warm-up is no question."""
    return [request.path for request in several.azures[name].requests if request.method != "HEAD"]


async def test_plan_names_its_resource(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two") as several:
        for name in ("one", "two"):
            plan = await several.plan_at(name)
            direct, relay, proxy = plan["connections"]
            assert (plan["resource"], direct["resource"], plan["outlook"]) == (name, name, "good")
            assert direct["url"].startswith(several.azures[name].base_url)
            assert (relay["resource"], proxy["resource"]) == (None, None)


async def test_agent_stays_in_its_zone(tmp_path: Path, agents_file: Path) -> None:
    async with run_resources(tmp_path, "one", "two", options=ZONES, agents_file=agents_file) as several:
        plans = [await several.broker.plan({"agent_id": "greta"}) for _ in range(8)]
        assert {(plan["resource"], plan["model"]) for plan in plans} == {("two", "gpt-realtime-mini")}
        assert not asked(several, "one")


async def test_disabled_zone_leaves_a_poor_plan(tmp_path: Path, agents_file: Path) -> None:
    async with run_resources(tmp_path, "one", "two", options=ZONES, agents_file=agents_file) as several:
        several.broker.state["minting"].pool.set_enabled("two", False)
        plan = await several.broker.plan({"agent_id": "greta"})
        assert (plan["outlook"], plan["token"], plan["strategy"]) == ("poor", None, "websocket_proxy")
        assert plan["retry_after_s"] >= 1
        level = (await several.broker.client.get("/status")).json()["slo"]
        assert level["plans"] == {"requests": 1, "usable": 0, "ratio": 0.0}
        assert not asked(several, "one")


async def test_unmatched_zone_stops_the_start(tmp_path: Path, agents_file: Path) -> None:
    with pytest.raises(AgentsFileError, match=r"agents\.greta: zones and resources match none of .*: one \(zone us\)"):
        async with run_resources(tmp_path, "one", options={"one": {"zone": "us"}}, agents_file=agents_file):
            pass


async def test_commands_switch_a_resource(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two") as several:
        broker = several.broker
        names = {name: azure.base_url for name, azure in several.azures.items()}
        env = environment(
            tmp_path,
            None,
            BROKER_DATABASE_URL=broker.settings.database_url.get_secret_value(),
            BROKER_RESOURCES_FILE=str(resources_file(tmp_path, names)),
            **key_variables(names),
        )

        async def enabled() -> dict[str, bool]:
            return {each["name"]: each["enabled"] for each in (await broker.client.get("/status")).json()["resources"]}

        async def is_out() -> bool:
            return await enabled() == {"one": True, "two": False}

        async def is_back() -> bool:
            return await enabled() == {"one": True, "two": True}

        done = await run_command("resources", "disable", "two", env=env, cwd=tmp_path)
        assert (done.code, done.out) == (0, "two is disabled, everywhere within two seconds\n")
        await eventually(is_out)
        assert {(await broker.plan())["resource"] for _ in range(6)} == {"one"}
        assert (await scrape(broker.client)).of("token_broker_resource_enabled", resource="two") == 0
        listed = await run_command("resources", "--json", "--url", broker.base_url, env=env, cwd=tmp_path)
        assert (listed.code, listed.err) == (0, "")
        one, two = json.loads(listed.out)["resources"]
        assert (one["name"], one["enabled"], one["health"]) == ("one", True, "good")
        assert (two["name"], two["enabled"]) == ("two", False)
        done = await run_command("resources", "enable", "two", env=env, cwd=tmp_path)
        assert (done.code, done.out) == (0, "two is enabled, everywhere within two seconds\n")
        await eventually(is_back)
        unknown = await run_command("resources", "disable", "three", env=env, cwd=tmp_path)
        assert (unknown.code, "the known ones are one, two" in unknown.err) == (2, True)
