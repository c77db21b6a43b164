"""An agent whose tool has a credential: no client ever sees it, and no path lets Azure show it to a page."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.compat.conftest import SIGNING_KEY, CompatBroker
from tests.simulator.support import silence, speech
from tests.support.agents import TOOL_AUTHORIZATION, TOOL_HEADER, agents_with_secrets, write_agents
from tests.support.broker import environment, make_settings, plain_client, run_broker, run_command, run_process
from tests.support.offers import OFFER
from token_broker.observability.logging import Redactor
from token_broker.sessions.agents import agents_secrets, load_agents
from token_broker.sessions.plans import session_spec
from token_broker.simulator import serve

CANARIES = (TOOL_AUTHORIZATION, TOOL_HEADER, "https://mcp.example.com", "canary_function", "You are Ann")
AGENTS = agents_with_secrets()

Open = Callable[..., AbstractAsyncContextManager[CompatBroker]]


@pytest.fixture
def agents_file(tmp_path: Path) -> Path:
    return write_agents(tmp_path, AGENTS)


@pytest.fixture
def open_broker(tmp_path: Path, agents_file: Path) -> Open:
    @asynccontextmanager
    async def opened(**overrides: Any) -> AsyncIterator[CompatBroker]:
        async with serve() as azure:
            settings = make_settings(
                tmp_path, azure.base_url, signing_keys=SIGNING_KEY, agents_file=agents_file, **overrides
            )
            async with run_broker(settings) as running:
                yield CompatBroker(running, azure)

    return opened


def assert_shows_nothing(document: object) -> None:
    text = json.dumps(document)
    for canary in CANARIES:
        assert canary not in text


@pytest.mark.parametrize("upstreams", [("voice_live",), ("openai_realtime",)], ids="-".join)
@pytest.mark.parametrize("path", ["/v1/realtime", "/voice-live/realtime", "proxy"])
@pytest.mark.parametrize("agent_id", ["ann", "ben"])
async def test_no_event_shows_agents_settings(
    open_broker: Open, upstreams: tuple[str, ...], path: str, agent_id: str
) -> None:
    async with open_broker(proxy_upstreams=upstreams) as compat:
        if path == "proxy":
            plan = await compat.running.plan({"agent_id": agent_id})
            offered = plan["connections"][-1]
            way, options = offered["url"].partition("/api")[1:], {"subprotocols": offered["protocols"]}
            connecting = compat.connect("".join(way), **options)
        else:
            connecting = compat.connect(path, secret=await compat.secret({"metadata": {"agent_id": agent_id}}))
        async with connecting as caller:
            await caller.hear("session.created")
            if path == "proxy":
                await caller.hear("session.updated")
            vad = {"type": "server_vad", "silence_duration_ms": 500}
            nested = {"type": "realtime", "audio": {"input": {"turn_detection": vad}}}
            speaks_ga = path == "/v1/realtime" or (path == "proxy" and upstreams == ("openai_realtime",))
            await caller.send("session.update", session=nested if speaks_ga else {"turn_detection": vad})
            await caller.hear("session.updated")
            await caller.say(speech(0.6) + silence(1.0))
            await caller.hear("response.done")
        assert_shows_nothing(caller.events)
        for event in caller.events:
            if event["type"] in {"session.created", "session.updated"}:
                names = set(_names(event["session"]))
                assert not names & {"tools", "voice", "transcription", "input_audio_transcription", "instructions"}
                assert names & {"turn_detection"}
            assert event["type"] not in {"error", "broker.error"}


def _names(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [name for key, inner in value.items() for name in (key, *_names(inner))]


async def test_mint_shows_no_agents_settings(open_broker: Open) -> None:
    async with open_broker() as compat:
        minted = (await compat.mint({"metadata": {"agent_id": "ann"}})).json()
        assert_shows_nothing(minted)
        assert not set(_names(minted["session"])) & {"tools", "voice", "transcription", "instructions"}
        assert (minted["session"]["model"], minted["session"]["type"]) == ("gpt-realtime", "realtime")
        status = (await compat.running.client.get("/status")).json()
        assert_shows_nothing(status)


async def test_agent_with_tool_secret_gets_socket_plans(open_broker: Open) -> None:
    async with open_broker() as compat:
        plan = await compat.running.plan({"agent_id": "ann"})
        assert [connection["transport"] for connection in plan["connections"]] == ["websocket_proxy"]
        assert (plan["token"], plan["endpoint"], plan["strategy"]) == (None, compat.url, "websocket_proxy")
        assert "canary" not in json.dumps(plan)
        assert not [request for request in compat.azure.requests if "client_secrets" in str(request)], (
            "nothing is minted"
        )
        other = await compat.running.plan({"agent_id": "ben"})
        assert other["connections"][0]["transport"] == "webrtc"


async def test_sockets_only_agent_without_proxy_gets_503(open_broker: Open) -> None:
    async with open_broker(token_strategies=("ga",)) as compat:
        answer = (await compat.running.token({"agent_id": "ann"})).response
        assert (answer.status_code, answer.json()["code"]) == (503, "nothing_minted")
        assert (await compat.running.token({"agent_id": "cid"})).response.status_code == 200


async def test_sockets_only_agent_takes_no_call(open_broker: Open) -> None:
    async with open_broker() as compat:
        plan = await compat.running.plan({"agent_id": "ann"})
        secret = await compat.secret({"metadata": {"agent_id": "ann"}})
        for path, credential in (("/realtime/calls", plan["session_token"]), ("/v1/realtime/calls", secret)):
            answer = await compat.running.client.post(
                path,
                content=OFFER,
                headers={"Authorization": f"Bearer {credential}", "Content-Type": "application/sdp"},
            )
            assert (answer.status_code, answer.json()["code"]) == (403, "sockets_only")
        assert compat.running.talks.active == 0
        assert not [request for request in compat.azure.requests if "client_secrets" in str(request)]


def test_agents_repr_hides_its_tools(agents_file: Path) -> None:
    agent = load_agents(agents_file).get("ann")
    assert agent is not None
    assert agent.sockets_only
    spec = session_spec(agent, make_settings(agents_file.parent, "https://x.openai.azure.com"))
    for printed in (repr(agent), str(agent), repr(spec), str(load_agents(agents_file).get("ben"))):
        for canary in CANARIES:
            assert canary not in printed


@pytest.mark.parametrize("text", [AGENTS.replace('type = "mcp"', "type = 5 +"), AGENTS.replace("[agents.cid]", "[x]")])
def test_file_errors_hide_its_secrets(tmp_path: Path, text: str) -> None:
    from token_broker.sessions.agents import AgentsFileError

    path = write_agents(tmp_path, text)
    with pytest.raises(AgentsFileError) as refused:
        load_agents(path)
    assert "canary" not in str(refused.value)
    assert agents_secrets(path) == ()


def test_agents_file_secrets_are_masked_in_logs(agents_file: Path) -> None:
    secrets = agents_secrets(agents_file)
    assert {secret.get_secret_value() for secret in secrets} == {"canary-authorization-77", "canary-header-88"}
    assert "canary" not in Redactor(secrets)("said canary-authorization-77 and canary-header-88")


def test_header_secret_is_masked_without_scheme() -> None:
    secrets = [SecretStr("Bearer canary-77"), SecretStr("Basic Y2FuYXJ5")]
    assert Redactor(secrets)("said canary-77, Y2FuYXJ5, Basic Y2FuYXJ5") == "said [redacted], [redacted], [redacted]"


@pytest.mark.slow
async def test_start_and_doctor_name_sockets_only_agent(tmp_path: Path, agents_file: Path) -> None:
    async with serve() as azure:
        env = environment(tmp_path, azure.base_url, BROKER_AGENTS_FILE=str(agents_file))
        async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
            assert (await client.post("/realtime/token", json={"agent_id": "ann"})).status_code == 200
            told = [json.loads(line) for line in process.log.splitlines() if "agent_is_sockets_only" in line]
            assert [line["agent_id"] for line in told] == ["ann"]
            assert "canary" not in process.log
        doctor = await run_command("doctor", env=env, cwd=tmp_path)
        assert "ann: WebSockets only" in doctor.out
        assert "canary" not in doctor.out + doctor.err
        minted = [request for request in azure.requests if "client_secrets" in str(request)]
        assert minted, "doctor looks at the mints all the same"
        assert "canary" not in str(minted)
