"""Nobody talks to a default assistant: the agent's settings are confirmed before anything else happens in a talk."""

import contextlib
from typing import Any

import pytest
from pydantic import SecretStr

from tests.relay.support.azure import AzureTalk, converse, scripted_azure
from tests.relay.support.broker import Client, broker
from token_broker.simulator import RunningSimulator, SimulatorConfig, run_in_thread

SIMULATED: dict[str, Any] = {"key": SecretStr("simulated-key")}
FAST = SimulatorConfig(answer_speed=20)
TYPED = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Who are you?"}]}


async def ask(client: Client) -> dict[str, Any]:
    await client.send({"type": "conversation.item.create", "item": TYPED})
    await client.send({"type": "response.create"})
    return await client.until("response.done")


def nobody_else_spoke(azure: RunningSimulator) -> bool:
    return not [each for each in azure.transcript.answers if each.default_persona]


@pytest.mark.parametrize(
    ("upstream", "fault"),
    [
        ("voice_live", {"field": "voice"}),
        ("voice_live", {"field": "input_audio_transcription.model", "names": "message"}),
        ("openai_realtime", {"field": "audio.output.voice", "code": "cannot_update_voice"}),
    ],
)
async def test_refused_field_is_left_out(upstream: str, fault: dict[str, str]) -> None:
    with run_in_thread(FAST) as azure, azure.fault("refuse_update", **fault):
        async with broker(azure.base_url, proxy_upstreams=(upstream,), **SIMULATED) as running:
            async with running.client() as client:
                assert (await client.ready())["upstream"] == upstream
                assert (await ask(client))["response"]["status"] == "completed"
            assert "error" not in [event["type"] for event in client.events]
            status = running.relay.snapshot()
            field = fault["field"].removesuffix(".model")
            assert status.settings_left_out == {"default": {"elena": {f"session.{field}": 1}}}
            assert status.sessions_refused == {}
        assert azure.transcript.answers
        assert nobody_else_spoke(azure)


async def test_refused_field_is_left_out_for_compat() -> None:
    with run_in_thread(FAST) as azure, azure.fault("refuse_update", field="audio.input.transcription"):
        async with (
            broker(azure.base_url, proxy_upstreams=("openai_realtime",), **SIMULATED) as running,
            running.client(path="/realtime") as client,
        ):
            assert (await client.next())["type"] == "session.created"
            assert (await ask(client))["response"]["status"] == "completed"
            assert "error" not in [event["type"] for event in client.events]
        assert nobody_else_spoke(azure)


@pytest.mark.parametrize(
    ("path", "fields"),
    [("", ("turn_detection", "voice")), ("", ("instructions",)), ("/realtime", ("turn_detection", "voice"))],
)
async def test_second_refusal_ends_the_talk(path: str, fields: tuple[str, ...]) -> None:
    with run_in_thread(FAST) as azure, contextlib.ExitStack() as faults:
        for field in fields:
            faults.enter_context(azure.fault("refuse_update", field=field))
        async with broker(azure.base_url, proxy_upstreams=("voice_live",), **SIMULATED) as running:
            async with running.client(path=path) as client:
                assert await client.closed() == 4502
            (told,) = client.events
            if path:
                assert (told["type"], told["error"]["code"]) == ("error", "session_refused")
            else:
                assert (told["type"], told["code"], told["retryable"]) == ("broker.error", "session_refused", False)
            assert running.relay.snapshot().sessions_refused == {"default": {"elena": 1}}


async def test_other_settings_confirmed_end_the_talk() -> None:
    with run_in_thread(FAST) as azure, azure.fault("ignore_update"):
        async with broker(azure.base_url, **SIMULATED) as running, running.client() as client:
            assert await client.closed() == 4502
            assert [event["code"] for event in client.events] == ["session_refused"]


async def test_refusing_way_is_tried_last_next_time() -> None:
    async def script(talk: AzureTalk) -> None:
        if talk.dialect == "ga":
            await converse(talk)
        else:
            await talk.connection.recv()
            await talk.send({"type": "error", "error": {"code": "invalid_value", "message": "secret of Azure"}})
            await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        for _ in range(2):
            async with running.client() as client:
                assert (await client.ready())["upstream"] == "openai_realtime"
                assert "secret" not in str(client.events)
        assert [talk.dialect for talk in azure.talks] == ["preview", "ga", "ga"]


async def test_early_answer_reaches_nobody() -> None:
    answer = {"id": "resp_early", "status": "in_progress"}
    item = {"id": "item_early", "type": "message", "role": "assistant", "content": []}
    about = {"response_id": "resp_early", "item_id": "item_early", "output_index": 0, "content_index": 0}

    async def script(talk: AzureTalk) -> None:
        await talk.send({"type": "session.created", "session": {"id": "s", "instructions": "You are helpful."}})
        await talk.send({"type": "response.created", "response": answer})
        await talk.send({"type": "conversation.item.created", "item": item})
        await talk.send({"type": "response.audio.delta", **about, "delta": "AAAA"})
        async for message in talk.connection:
            talk.arrived(message)
            event = talk.received[-1]
            if event["type"] == "session.update":
                await talk.send({"type": "session.updated", "session": {"id": "s", **event["session"]}})
                await talk.send({"type": "response.audio.delta", **about, "delta": "AAAA"})
            elif event["type"] == "response.cancel":
                await talk.send(
                    {"type": "response.done", "response": {**answer, "status": "cancelled", "output": [item]}}
                )
            elif event["type"] == "conversation.item.delete":
                await talk.send({"type": "conversation.item.deleted", "item_id": event["item_id"]})
                await talk.send({"type": "rate_limits.updated", "rate_limits": []})

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        async with running.client() as client:
            await client.ready()
            await client.until("rate_limits.updated")
        assert "early" not in str(client.events)
        assert not running.ingest.turns
