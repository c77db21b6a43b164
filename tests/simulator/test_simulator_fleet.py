"""Several resources in one process: each with its own port, deployments and faults, and one transcript of them all."""

import asyncio
import tomllib
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.simulator.scene import user_text
from tests.simulator.support import GA_PATH, VOICE_LIVE_PATH, Caller, call, silence, speech
from tests.support.broker import environment, plain_client, start_process
from tests.support.waiting import eventually
from token_broker.simulator import SimulatorConfig, run_resources_in_thread, serve_resources
from token_broker.simulator.audio import marked
from token_broker.simulator.records.transcript import TalkTranscript

MINT = {"session": {"type": "realtime", "model": "gpt-realtime"}}


async def write(caller: Caller, text: str) -> None:
    """A typed message, and the answer to it."""
    await caller.send("conversation.item.create", item=user_text(text))
    await caller.send("response.create")
    await caller.hear("response.done")


async def test_each_has_own_url_and_deployments() -> None:
    lean = SimulatorConfig(deployments=frozenset({"gpt-realtime-mini"}))
    async with serve_resources("eastus2", configs={"swedencentral": lean}) as azure, plain_client() as client:
        answers = [
            await client.post(
                f"{resource.url}/openai/v1/realtime/client_secrets", json=MINT, headers={"api-key": "simulated-key"}
            )
            for resource in azure
        ]
        assert [answer.status_code for answer in answers] == [200, 404]
        assert answers[1].json()["error"]["code"] == "DeploymentNotFound"
        assert [resource.name for resource in azure] == ["eastus2", "swedencentral"]
        assert len(azure.by_name["eastus2"].requests) == 1


async def test_faults_are_a_resources_own() -> None:
    async with serve_resources("eastus2", "swedencentral") as azure:
        with azure.by_name["eastus2"].fault("status", code=503):
            with pytest.raises(InvalidStatus):
                async with call(azure.by_name["eastus2"]):
                    pass
            async with call(azure.by_name["swedencentral"]) as caller:
                await caller.hear("session.created")


async def test_control_of_one_reaches_the_others() -> None:
    async with serve_resources("eastus2", "swedencentral") as azure, plain_client() as client:
        sweden = f"{azure.by_name['swedencentral'].url}/_simulator"
        assert (await client.get(f"{sweden}/resources")).json() == {each.name: each.url for each in azure}
        path = f"{sweden}/resources/eastus2/faults"
        put = await client.put(path, json=[{"match": "/", "fault": "status", "code": 503}])
        assert put.status_code == 200
        assert (await client.get(f"{azure.by_name['eastus2'].url}/openai/v1/x")).status_code == 503
        assert (await client.get(f"{azure.by_name['swedencentral'].url}/openai/v1/x")).status_code == 404
        assert (await client.get(f"{sweden}/resources/eastus2/")).json()["resource"] == "eastus2"
        assert (await client.get(f"{sweden}/resources/nowhere/faults")).status_code == 404


async def test_refuse_closes_the_port_and_opens_it() -> None:
    async with serve_resources("eastus2", "swedencentral") as azure:
        eastus2 = azure.by_name["eastus2"]
        async with plain_client(eastus2.url) as kept, plain_client() as client:
            assert (await kept.get("/_simulator")).status_code == 200
            for _ in range(2):
                with eastus2.fault("refuse"):
                    with pytest.raises(httpx.ConnectError):
                        await client.get(f"{eastus2.url}/_simulator")
                    with pytest.raises(httpx.TransportError):
                        await kept.get("/openai/v1/x")
                assert (await kept.get("/openai/v1/x")).status_code == 404


async def test_refuse_ends_after_its_seconds() -> None:
    async with serve_resources("eastus2") as azure, plain_client() as client:
        eastus2 = azure.by_name["eastus2"]
        eastus2.set_faults({"match": "/", "fault": "refuse", "seconds": 0.2})
        with pytest.raises(httpx.ConnectError):
            await client.get(eastus2.url)

        async def answers() -> bool:
            try:
                return not (await client.get(f"{eastus2.url}/_simulator")).json()["faults"]
            except httpx.ConnectError:
                return False

        assert await eventually(answers)


async def test_refusal_is_set_from_another_thread() -> None:
    with run_resources_in_thread("eastus2", "swedencentral") as azure:
        eastus2 = azure.by_name["eastus2"]
        async with plain_client() as client:
            with eastus2.fault("refuse"), pytest.raises(httpx.ConnectError):
                await client.get(eastus2.url)
            assert (await client.get(f"{eastus2.url}/_simulator")).status_code == 200


async def test_transcript_tells_who_answered_what() -> None:
    transcript = TalkTranscript()
    async with serve_resources("eastus2", "swedencentral", transcript=transcript) as azure:
        for name, path, number in (("eastus2", VOICE_LIVE_PATH, 7), ("swedencentral", GA_PATH, 8)):
            async with call(azure.by_name[name], path) as caller:
                await caller.say(marked(speech(0.5), number) + silence(1))
                await caller.hear("response.done")
                await write(caller, f"question #{number + 10}")
                assert [talk.resource for talk in azure.transcript.open_talks] == [name]
            await azure.by_name[name].until(running=0)
    assert [(each.resource, each.key, each.kind) for each in transcript.utterances] == [
        ("eastus2", "#7", "speech"),
        ("eastus2", "#17", "text"),
        ("swedencentral", "#8", "speech"),
        ("swedencentral", "#18", "text"),
    ]
    (spoken,), (typed,) = transcript.answers_to("#7"), transcript.answers_to("#18")
    assert (spoken.resource, spoken.asked_by, spoken.status) == ("eastus2", "detection", "completed")
    assert (typed.resource, typed.asked_by, typed.follows) == ("swedencentral", "client", "utterance")
    assert spoken.audio_ms >= 500
    assert typed.text == "[simulated] you wrote: question #18"
    assert transcript.utterances[0].frames == 25
    assert transcript.utterances[0].repeated_frames == 0
    assert [(talk.resource, talk.dialect, talk.ended_by) for talk in transcript.talks] == [
        ("eastus2", "voice_live", "client"),
        ("swedencentral", "ga", "client"),
    ]
    assert all(talk.closed_at is not None and talk.closed_at >= talk.opened_at for talk in transcript.talks)


async def test_transcript_over_http() -> None:
    async with serve_resources("eastus2", "swedencentral") as azure, plain_client() as client:
        url = f"{azure.by_name['swedencentral'].url}/_simulator/transcript"
        async with call(azure.by_name["eastus2"]) as caller:
            await write(caller, "question #3")
            both = (await client.get(url)).json()
            assert (both["open"], both["answers"][0]["answers"]) == (1, "#3")
            alone = (await client.get(url, params={"resource": "swedencentral"})).json()
            assert alone == {"open": 0, "talks": [], "utterances": [], "answers": []}
            assert (await client.delete(url)).status_code == 204
            left = (await client.get(url)).json()
            assert (left["open"], len(left["talks"]), left["answers"]) == (1, 1, [])


async def test_transcript_names_default_persona() -> None:
    async with serve_resources("eastus2") as azure, call(azure.by_name["eastus2"]) as caller:
        await write(caller, "#1")
        await caller.send("session.update", session={"type": "realtime", "instructions": "You are Elena."})
        await write(caller, "#2")
    first, second = azure.transcript.answers
    assert (first.default_persona, second.default_persona) == (True, False)
    assert second.instructions == "You are Elena."


async def test_resources_file_names_each() -> None:
    async with serve_resources("eastus2", "swedencentral") as azure:
        listed = tomllib.loads(azure.resources_file())["resources"]
    assert [(table["name"], table["endpoint"]) for table in listed] == [(each.name, each.url) for each in azure]
    assert {table["key_env"] for table in listed} == {"SIMULATOR_KEY"}


@pytest.mark.slow
async def test_command_simulates_several(tmp_path: Path) -> None:
    several = ("--resources", "eastus2,swedencentral", "--deployment", "swedencentral=gpt-realtime-mini")
    arguments = ("simulate", "--port", "0", *several)
    told, printed = tmp_path / "stderr", tmp_path / "stdout"
    with told.open("wb") as err, printed.open("wb") as out:
        process = await start_process(arguments, environment(tmp_path, None), tmp_path, out, err)
    try:

        async def is_running() -> bool:
            return "SIMULATED" in told.read_text()

        await eventually(is_running)
        tables = tomllib.loads(printed.read_text())["resources"]
        async with plain_client() as client:
            described = [(await client.get(f"{table['endpoint']}/_simulator")).json() for table in tables]
    finally:
        process.terminate()
        code = await asyncio.wait_for(process.wait(), 15)
    assert code == 0
    assert [(each["resource"], len(each["deployments"])) for each in described] == [
        ("eastus2", 6),
        ("swedencentral", 1),
    ]
    assert [table["model"] for table in tables] == ["gpt-realtime", "gpt-realtime-mini"]
