"""The realtime sockets: who is let in, how the others are refused, and that nothing is left of a talk that ended."""

import asyncio
import base64
import gc
import json
from typing import Any

import httpx
import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.simulator.support import (
    GA_PATH,
    KEY,
    PREVIEW_PATH,
    VOICE_LIVE_PATH,
    call,
    correlation,
    silence,
    speech,
)
from token_broker.simulator import Kind, RunningSimulator, SimulatorConfig, serve

ENTRA = {"authorization": "Bearer simulated-entra-token"}
every_path = pytest.mark.parametrize(
    "path", [GA_PATH, PREVIEW_PATH, VOICE_LIVE_PATH], ids=["ga", "preview", "voice_live"]
)


async def _refusal(azure: RunningSimulator, path: str, headers: dict[str, str], **options: Any) -> tuple[int, Any]:
    """Status and body of a handshake that must fail."""
    with pytest.raises(InvalidStatus) as refused:
        async with call(azure, path, headers, **options):
            pass
    response = refused.value.response
    assert response.headers["x-simulated"] == "true"
    return response.status_code, json.loads(response.body)


async def _mint(azure: RunningSimulator, session: dict[str, Any]) -> str:
    async with httpx.AsyncClient(base_url=azure.base_url, headers=KEY) as client:
        answer = await client.post("/openai/v1/realtime/client_secrets", json={"session": session})
        return str(answer.json()["value"])


@every_path
@pytest.mark.parametrize("headers", [KEY, ENTRA], ids=["key", "entra"])
async def test_key_and_entra_open_every_socket(azure: RunningSimulator, path: str, headers: dict[str, str]) -> None:
    async with call(azure, path, headers) as caller:
        # Voice Live states the name of what hosts the model.
        hosted = "gpt-realtime-global-standard" if path is VOICE_LIVE_PATH else "gpt-realtime"
        assert (await caller.hear("session.created"))["session"]["model"] == hosted
    assert azure.requests[0].status == 101


@every_path
@pytest.mark.parametrize("headers", [{}, {"api-key": "wrong"}, {"authorization": "Bearer wrong"}])
async def test_handshake_without_credential_is_401(azure: RunningSimulator, path: str, headers: dict[str, str]) -> None:
    assert (await _refusal(azure, path, headers))[0] == 401


async def test_key_as_bearer_works_on_v1_alone(azure: RunningSimulator) -> None:
    bearer = {"authorization": "Bearer simulated-key"}
    async with call(azure, GA_PATH, bearer) as caller:
        await caller.hear("session.created")
    assert (await _refusal(azure, VOICE_LIVE_PATH, bearer))[0] == 401


@pytest.mark.parametrize("credential", ["api-key=simulated-key", "authorization=Bearer+simulated-entra-token"])
async def test_voice_live_takes_query_credential(azure: RunningSimulator, credential: str) -> None:
    async with call(azure, f"{VOICE_LIVE_PATH}&{credential}", {}) as caller:
        await caller.hear("session.created")
    assert credential.rpartition("=")[2].removeprefix("Bearer+") not in azure.requests[0].query
    assert (await _refusal(azure, f"{GA_PATH}&{credential}", {}))[0] == 401


@pytest.mark.parametrize("credential", ["api-key=wrong", "authorization=Bearer+wrong", "authorization=wrong"])
async def test_wrong_query_credential_is_401(azure: RunningSimulator, credential: str) -> None:
    assert (await _refusal(azure, f"{VOICE_LIVE_PATH}&{credential}", {}))[0] == 401


async def test_api_version_on_ga_is_401(azure: RunningSimulator) -> None:
    assert (await _refusal(azure, f"{GA_PATH}&api-version=2025-10-01", KEY))[0] == 401


async def test_beta_header_on_ga_is_refused(azure: RunningSimulator) -> None:
    status, body = await _refusal(azure, GA_PATH, KEY | {"OpenAI-Beta": "realtime=v1"})
    assert (status, body["error"]["code"]) == (400, "beta_api_shape_disabled")


@pytest.mark.parametrize("version", ["2025-10-01", "2026-04-10", "2026-07-15"])
async def test_voice_live_knows_its_versions(azure: RunningSimulator, version: str) -> None:
    async with call(azure, f"/voice-live/realtime?api-version={version}&model=gpt-4o") as caller:
        await caller.hear("session.created")


@pytest.mark.parametrize(
    "path",
    [
        "/openai/v1/realtime?model=gpt-realtime-1.5",
        "/openai/v1/realtime?model=gpt-realtime-2.1-mini",
        "/voice-live/realtime?api-version=2026-07-15&model=azure-realtime",
        "/voice-live/realtime?api-version=2026-07-15&model=gpt-5.6-terra",
        "/voice-live/realtime?api-version=2026-07-15&model=phi4-mm-realtime",
    ],
)
async def test_models_of_2026_are_known(azure: RunningSimulator, path: str) -> None:
    async with call(azure, path) as caller:
        await caller.hear("session.created")


async def test_classic_whisper_fails_on_ga(azure: RunningSimulator) -> None:
    transcription = {"audio": {"input": {"transcription": {"model": "whisper-1"}}}}
    async with call(azure) as caller:
        await caller.send("session.update", session={"type": "realtime", **transcription})
        await caller.say(speech(0.5) + silence(1))
        failed = await caller.hear("conversation.item.input_audio_transcription.failed")
    assert failed["error"] == {
        "type": "server_error",
        "code": "DeploymentNotFound",
        "message": f"Input transcription failed for item '{failed['item_id']}'.",
        "param": None,
    }


async def test_scripted_responses_are_used_in_order(azure: RunningSimulator) -> None:
    script = [{"say": "First."}, {"status": "failed"}]
    async with httpx.AsyncClient(base_url=azure.base_url) as client, call(azure) as caller:
        listed = (await client.put("/_simulator/responses", json=script)).json()
        assert [(each["say"], each["status"]) for each in listed] == [("First.", "completed"), (None, "failed")]
        for _ in range(3):
            await caller.send("response.create", response={"output_modalities": ["text"]})
            await caller.hear("response.done")
        assert (await client.get("/_simulator/responses")).json() == []
    done = [event["response"] for event in caller.heard("response.done")]
    assert [response["status"] for response in done] == ["completed", "failed", "completed"]
    assert caller.heard("response.output_text.done")[0]["text"] == "First."


@pytest.mark.parametrize("body", [b"nonsense", b'{"say": "x"}', b'[{"say": 1}]', b'[{"calls": [{"name": ""}]}]'])
async def test_invalid_script_is_refused(azure: RunningSimulator, body: bytes) -> None:
    azure.script_responses({"say": "kept"})
    async with httpx.AsyncClient(base_url=azure.base_url) as client:
        answer = await client.put("/_simulator/responses", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BadResponses")
        assert answer.json()["error"]["problems"]
        assert [each["say"] for each in (await client.get("/_simulator/responses")).json()] == ["kept"]


@pytest.mark.parametrize("query", ["model=gpt-realtime", "model=gpt-realtime&api-version=2024-10-01-preview"])
async def test_voice_live_refuses_other_versions(azure: RunningSimulator, query: str) -> None:
    status, body = await _refusal(azure, f"/voice-live/realtime?{query}", KEY)
    assert (status, body["error"]["message"]) == (400, "API version not supported")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/openai/v1/realtime?model=gpt-9", 404),
        ("/openai/v1/realtime", 400),
        ("/voice-live/realtime?api-version=2025-10-01&model=gpt-9", 404),
        ("/voice-live/realtime?api-version=2025-10-01", 400),
        ("/openai/realtime?api-version=2025-04-01-preview&deployment=gpt-9", 404),
        ("/openai/v2/realtime?model=gpt-realtime", 404),
    ],
)
async def test_missing_model_or_path_is_refused(azure: RunningSimulator, path: str, status: int) -> None:
    assert (await _refusal(azure, path, KEY))[0] == status


@pytest.mark.parametrize(
    ("kind", "missing"), [("direct", VOICE_LIVE_PATH), ("unified", PREVIEW_PATH), ("project", PREVIEW_PATH)]
)
async def test_kind_without_socket_answers_404(kind: Kind, missing: str) -> None:
    async with serve(SimulatorConfig(kinds=frozenset({kind}))) as azure:
        status, body = await _refusal(azure, missing, KEY)
    assert (status, body) == (404, {"error": {"code": "404", "message": "Resource not found"}})


async def test_disabled_keys_are_403() -> None:
    async with serve(SimulatorConfig(keys_disabled=True)) as azure:
        status, body = await _refusal(azure, VOICE_LIVE_PATH, KEY)
    assert (status, body["error"]["code"]) == (403, "AuthenticationTypeDisabled")


async def test_talks_beyond_limit_are_429() -> None:
    async with serve(SimulatorConfig(max_talks=1)) as azure, call(azure) as caller:
        await caller.hear("session.created")
        assert (await _refusal(azure, GA_PATH, KEY))[0] == 429


async def test_get_on_socket_path_is_404(keyed: httpx.AsyncClient) -> None:
    assert (await keyed.get(GA_PATH)).status_code == 404


async def test_secret_opens_minted_talk(azure: RunningSimulator) -> None:
    session: dict[str, Any] = {"type": "realtime", "model": "gpt-realtime", "instructions": "Be brief."}
    session["audio"] = {"output": {"voice": "cedar"}}
    secret = await _mint(azure, session)
    for _ in range(2):
        async with call(azure, "/openai/v1/realtime", {"authorization": f"Bearer {secret}"}) as caller:
            created = await caller.hear("session.created")
        assert created["session"]["instructions"] == "Be brief."
        assert created["session"]["audio"]["output"]["voice"] == "cedar"
    azure.simulator.resource.secrets.expire(secret)
    assert (await _refusal(azure, "/openai/v1/realtime", {"authorization": f"Bearer {secret}"}))[0] == 401


async def test_first_session_has_id_of_mint(azure: RunningSimulator) -> None:
    body = {"session": {"type": "realtime", "model": "gpt-realtime"}}
    async with httpx.AsyncClient(base_url=azure.base_url, headers=KEY) as client:
        minted = (await client.post("/openai/v1/realtime/client_secrets", json=body)).json()
    ids = []
    for _ in range(2):
        async with call(azure, "/openai/v1/realtime", {"authorization": f"Bearer {minted['value']}"}) as caller:
            ids.append((await caller.hear("session.created"))["session"]["id"])
    assert ids[0] == minted["session"]["id"] != ids[1]


async def test_transcription_secret_opens_no_talk(azure: RunningSimulator) -> None:
    secret = await _mint(azure, {"type": "transcription"})
    assert (await _refusal(azure, "/openai/v1/realtime", {"authorization": f"Bearer {secret}"}))[0] == 400


@pytest.mark.parametrize("taken", [False, True])
async def test_secret_as_subprotocol_is_an_option(taken: bool) -> None:
    async with serve(SimulatorConfig(ephemeral_subprotocol=taken)) as azure:
        secret = await _mint(azure, {"type": "realtime", "model": "gpt-realtime"})
        offered = ["realtime", f"openai-insecure-api-key.{secret}"]
        if taken:
            async with call(azure, GA_PATH, {}, subprotocols=offered) as caller:
                await caller.hear("session.created")
                assert caller.socket.subprotocol == "realtime"
        else:
            assert (await _refusal(azure, GA_PATH, {}, subprotocols=offered))[0] == 401


@pytest.mark.parametrize(("offered", "chosen"), [(None, None), (["realtime"], "realtime"), (["other"], None)])
async def test_subprotocol_is_chosen_if_offered(
    azure: RunningSimulator, offered: list[str] | None, chosen: str | None
) -> None:
    async with call(azure, subprotocols=offered) as caller:
        assert caller.socket.subprotocol == chosen


@every_path
async def test_spoken_talk_comes_back_as_said(azure: RunningSimulator, path: str) -> None:
    async with call(azure, path) as caller:
        await caller.say(silence(0.4) + speech(3) + silence(1))
        await caller.hear("response.done")
    assert correlation(speech(3), caller.audio()) > 0.99


async def test_request_log_keeps_events_not_audio(azure: RunningSimulator) -> None:
    async with call(azure) as caller:
        await caller.say(silence(0.1))
        await caller.send("session.update", session={"type": "realtime", "instructions": "Be kind."})
        await caller.hear("session.updated")
        await caller.socket.send("nonsense")
        await caller.hear("error")
    await azure.until(running=0)
    (seen,) = azure.requests
    assert seen.events == [
        {"type": "session.update", "session": {"type": "realtime", "instructions": "Be kind."}},
        "nonsense",
    ]
    assert (seen.frames_received, seen.frames_sent, seen.auth) == (7, 3, "key")


async def test_binary_message_is_an_error(azure: RunningSimulator) -> None:
    async with call(azure) as caller:
        await caller.socket.send(b"\x00\x01")
        assert (await caller.hear("error"))["error"]["code"] == "invalid_event"


async def test_talk_is_closed_at_its_longest() -> None:
    async with serve(SimulatorConfig(longest_talk_s=0.2)) as azure, call(azure) as caller:
        assert (await caller.hear("error"))["error"]["code"] == "session_expired"
        with pytest.raises(ConnectionClosed) as closed:
            await caller.hear("never")
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "session_expired")


async def test_one_append_takes_15_mib_of_audio(azure: RunningSimulator) -> None:
    async with call(azure) as caller:
        await caller.send("input_audio_buffer.append", audio=base64.b64encode(bytes(15 * 1024 * 1024)).decode())
        await caller.send("input_audio_buffer.clear")
        await caller.hear("input_audio_buffer.cleared")


async def test_vanished_client_leaves_nothing(azure: RunningSimulator) -> None:
    async with call(azure) as caller:
        await caller.say(speech(5) + silence(1))
        await caller.hear("response.output_audio.delta")
        caller.socket.transport.abort()
        await azure.until(running=0)


async def test_unread_talk_stops_reading_too(azure: RunningSimulator) -> None:
    with azure.fault("flood", bytes=100_000):
        async with call(azure, max_queue=1) as caller:
            caller.socket.transport.pause_reading()
            stuck = asyncio.create_task(caller.say(silence(600), piece_ms=1000))
            # Once no buffer between the two takes any more, both stand still.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(stuck), 1)
            caller.socket.transport.abort()
            with pytest.raises(ConnectionClosed):
                await stuck
        await azure.until(running=0)


async def test_many_talks_leave_no_task() -> None:
    before = asyncio.all_tasks()
    async with serve() as azure:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(_short_talk(azure, clean=number % 2 == 0))
        await azure.until(running=0)
    gc.collect()
    assert asyncio.all_tasks() == before


async def _short_talk(azure: RunningSimulator, *, clean: bool) -> None:
    async with call(azure) as caller:
        await caller.send("response.create")
        await caller.hear("response.done" if clean else "response.created")
        if not clean:
            caller.socket.transport.abort()


async def test_stop_ends_running_talks() -> None:
    async with serve() as azure:
        url = azure.websocket_url + GA_PATH
        socket = await websockets.connect(url, additional_headers=KEY)
        await socket.recv()
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    await socket.close()
