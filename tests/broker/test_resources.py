"""Several resources behind one broker: plans name theirs, the operator switches them, residency holds."""

import contextlib
import json
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.observability.scrape import scrape
from tests.support.agents import write_agents
from tests.support.broker import environment, run_command
from tests.support.resources import SeveralResources, key_variables, resources_file, run_resources
from tests.support.waiting import eventually
from token_broker.relay.azure.connector import NoUpstreamError
from token_broker.security.tokens import ANONYMOUS, Owner
from token_broker.sessions.agents import AgentsFileError
from token_broker.sessions.plans import TalkSpecs

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
    return write_agents(tmp_path, AGENTS)


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


async def test_moving_talk_keeps_its_dialect(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two", proxy_upstreams=("voice_live", "openai_realtime")) as several:
        broker = several.broker
        connector, agent = broker.relay.parts.connector, broker.agents["elena"]
        specs = TalkSpecs(broker.settings, Owner("session-that-moves", ANONYMOUS, 1), None)
        wanted = agent.wanted("session-that-moves")
        order = connector.pool.order(wanted)
        lost = await connector.connect(specs.of(agent), wanted=wanted, only="openai_realtime")
        assert (lost.resource, lost.route.dialect) == (order[0].name, "ga")
        connector.pool.set_enabled(lost.resource, enabled=False)
        found = await connector.connect(
            specs.of(agent), wanted=agent.wanted("session-that-moves", running=True), after=lost
        )
        assert (found.resource, found.route.dialect) == (order[1].name, "ga")
        for upstream in (lost, found):
            await upstream.socket.aclose()


async def test_agents_own_deployment_is_asked(tmp_path: Path, agents_file: Path) -> None:
    async with run_resources(tmp_path, "one", "two", options=ZONES, agents_file=agents_file) as several:
        broker = several.broker
        connector, agent = broker.relay.parts.connector, broker.agents["greta"]
        specs = TalkSpecs(broker.settings, Owner("session-of-greta", ANONYMOUS, 1), None)
        upstream = await connector.connect(specs.of(agent), wanted=agent.wanted("session-of-greta"))
        await upstream.socket.aclose()
        assert (upstream.resource, upstream.model) == ("two", "gpt-realtime-mini")
        (socket,) = [each for each in several.azures["two"].requests if each.protocol == "websocket"]
        assert "model=gpt-realtime-mini" in socket.query


async def test_talks_are_counted_once(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two") as several:
        broker = several.broker
        plan = await broker.plan()
        proxy = plan["connections"][-1]
        async with connect(proxy["url"], subprotocols=proxy["protocols"], proxy=None) as socket:
            assert json.loads(await socket.recv())["type"] == "broker.ready"
        level = (await broker.client.get("/status")).json()["slo"]["talks"]
        assert (level["asked"], level["live"], level["ratio"]) == (1, 1, 1.0)
        assert level["time_to_live_ms"]["p50"] > 0
        seen = await scrape(broker.client)
        assert seen.of("token_broker_talks_asked_total") == seen.total("token_broker_talks_live_total") == 1
        assert seen.total("token_broker_talk_time_to_live_seconds_count") == 1


async def test_talks_ask_while_all_rest(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two", breaker_failures=1) as several:
        broker, azures = several.broker, several.azures
        agent = broker.agents["elena"]
        connector = broker.relay.parts.connector
        specs = TalkSpecs(broker.settings, Owner("session-of-the-last-hope", ANONYMOUS, 1), None)
        wanted = agent.wanted("session-of-the-last-hope")
        with contextlib.ExitStack() as stack:
            for azure in azures.values():
                stack.enter_context(azure.fault("status", code=503))
            for _ in range(3):
                before = {name: len(azure.requests) for name, azure in azures.items()}
                with pytest.raises(NoUpstreamError):
                    await connector.connect(specs.of(agent), wanted=wanted)
                assert all(len(azure.requests) > before[name] for name, azure in azures.items())
        upstream = await connector.connect(specs.of(agent), wanted=wanted)
        await upstream.socket.aclose()
