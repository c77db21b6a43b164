"""Faults inside talks on real sockets: they are set while talks run, and the transcript tells what came of them."""

import asyncio

import pytest
from websockets.exceptions import ConnectionClosed

from tests.simulator.scene import user_text
from tests.simulator.support import GA_PATH, VOICE_LIVE_PATH, Caller, call
from tests.support.broker import plain_client
from token_broker.simulator import RunningSimulator, run_in_thread

both = pytest.mark.parametrize("path", [GA_PATH, VOICE_LIVE_PATH], ids=["ga", "voice_live"])


async def ask(caller: Caller, text: str = "a question") -> None:
    await caller.send("conversation.item.create", item=user_text(text))
    await caller.send("response.create")


@both
@pytest.mark.parametrize(("how", "code"), [("reset", None), ("eof", None), ("close", 1011)])
async def test_open_talk_is_cut_now(azure: RunningSimulator, path: str, how: str, code: int | None) -> None:
    async with call(azure, path) as caller:
        await caller.hear("session.created")
        azure.set_faults({"match": "/", "fault": "cut", "how": how})
        with pytest.raises(ConnectionClosed) as closed:
            await caller.hear("never")
    assert (closed.value.rcvd.code if closed.value.rcvd else None) == code
    await azure.until(running=0)
    assert [talk.ended_by for talk in azure.transcript.talks] == ["fault"]
    async with call(azure, path) as later:
        await later.hear("session.created")


async def test_cut_reaches_talks_of_another_thread() -> None:
    with run_in_thread() as azure:
        async with call(azure) as caller:
            await caller.hear("session.created")
            azure.set_faults({"match": "/", "fault": "cut"})
            with pytest.raises(ConnectionClosed):
                await caller.hear("never")


@both
async def test_gone_after_handshake(azure: RunningSimulator, path: str) -> None:
    with azure.fault("cut", at="handshake"):
        async with call(azure, path) as caller:
            with pytest.raises(ConnectionClosed):
                await caller.hear("session.created")
    assert caller.events == []
    await azure.until(running=0)
    assert [talk.ended_by for talk in azure.transcript.talks] == ["fault"]


async def test_cut_answer_is_half_in_transcript(azure: RunningSimulator) -> None:
    with azure.fault("cut", at="sound", ms=300):
        async with call(azure) as caller:
            await ask(caller, "a long, long question, asked so that its answer takes a while #5")
            with pytest.raises(ConnectionClosed):
                await caller.hear("never")
    (answer,) = azure.transcript.answers_to("#5")
    assert (answer.audio_ms, answer.status) == (300, None)
    assert len(caller.audio()) == 300 * 48


async def test_silent_socket_wakes_with_a_call_and_close(azure: RunningSimulator) -> None:
    then = ["call", "session_expired", "close"]
    with azure.fault("silence", at="response.created", lasts_s=0.4, then=then):
        async with call(azure) as caller:
            await ask(caller)
            await caller.hear("response.created")
            with pytest.raises(ConnectionClosed) as closed:
                await caller.hear("never")
    assert [event["item"]["type"] for event in caller.heard("response.output_item.done")] == [
        "message",
        "function_call",
    ]
    assert caller.heard("error")[0]["error"]["code"] == "session_expired"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


async def test_silent_socket_without_pongs(azure: RunningSimulator) -> None:
    async with call(azure, ping_interval=None) as caller:
        await (await caller.socket.ping())
        azure.set_faults({"match": "/", "fault": "silence", "at": "response.created", "pongs": False, "lasts_s": 0.5})
        await ask(caller)
        await caller.hear("response.created")
        pong = asyncio.ensure_future(await caller.socket.ping())
        await caller.hear("response.done")
        assert not pong.done()
        pong.cancel()
        await asyncio.wait_for(await caller.socket.ping(), 10)


@both
async def test_refused_update_keeps_persona(azure: RunningSimulator, path: str) -> None:
    field = "audio.output.voice" if path is GA_PATH else "voice"
    voice = {"audio": {"output": {"voice": "echo"}}, "type": "realtime"} if path is GA_PATH else {"voice": "echo"}
    azure.set_faults({"match": path.partition("?")[0], "fault": "refuse_update", "field": field})
    async with call(azure, path) as caller:
        await caller.send("session.update", session=voice | {"instructions": "You are Elena."})
        refused = await caller.hear("error")
        await ask(caller)
        await caller.hear("response.done")
    assert refused["error"]["param"] == f"session.{field}"
    assert azure.transcript.answers[0].default_persona


async def test_failed_answer_closes_1011(azure: RunningSimulator) -> None:
    with azure.fault("failed_answers"):
        async with call(azure) as caller:
            await ask(caller)
            assert (await caller.hear("response.done"))["response"]["status"] == "failed"
            with pytest.raises(ConnectionClosed) as closed:
                await caller.hear("never")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011


@both
@pytest.mark.parametrize("seconds", [None, 20.0, -20.0])
async def test_session_states_its_end(azure: RunningSimulator, path: str, seconds: float | None) -> None:
    with azure.fault("session_expires", seconds=seconds):
        async with call(azure, path) as caller:
            session = (await caller.hear("session.created"))["session"]
    if seconds is None:
        assert "expires_at" not in session
    else:
        left_s = session["expires_at"] - azure.simulator.resource.clock.now()
        assert seconds - 10 < left_s <= seconds


async def test_session_ends_when_it_stated(azure: RunningSimulator) -> None:
    with azure.fault("session_expires", seconds=0.3):
        async with call(azure) as caller:
            assert (await caller.hear("error"))["error"]["code"] == "session_expired"


async def test_mint_fails_for_one_voice_only(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/", "fault": "status", "code": 500, "contains": '"verse"'})
    async with plain_client(azure.base_url) as client:

        async def mint(voice: str) -> int:
            session = {"type": "realtime", "model": "gpt-realtime", "audio": {"output": {"voice": voice}}}
            path, headers = "/openai/v1/realtime/client_secrets", {"api-key": "simulated-key"}
            return (await client.post(path, json={"session": session}, headers=headers)).status_code

        assert [await mint(voice) for voice in ("verse", "echo", "verse")] == [500, 200, 500]
