"""Each WebSocket fault does on a real socket what its name says, and leaves nothing behind."""

import asyncio
import json
import time

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from tests.simulator.support import GA_PATH, VOICE_LIVE_PATH, call
from token_broker.simulator import RunningSimulator

both = pytest.mark.parametrize("path", [GA_PATH, VOICE_LIVE_PATH], ids=["ga", "voice_live"])


async def test_handshake_hang_ends_when_client_leaves(azure: RunningSimulator) -> None:
    with azure.fault("hang"), pytest.raises(TimeoutError):
        async with call(azure, open_timeout=0.3):
            pass
    await azure.until(running=0)


async def test_handshake_hang_ends_on_stop(azure: RunningSimulator) -> None:
    with azure.fault("hang"):
        dialling = asyncio.create_task(_dial(azure))
        await azure.until(running=1)
        await azure.simulator.stop()
        with pytest.raises(Exception, match="valid HTTP response"):
            await dialling


async def _dial(azure: RunningSimulator) -> None:
    async with call(azure):
        pass


@both
async def test_hang_at_created_sends_no_session(azure: RunningSimulator, path: str) -> None:
    with azure.fault("hang", stage="created"):
        async with call(azure, path) as caller:
            with pytest.raises(TimeoutError):
                await caller.hear("session.created", timeout_s=0.3)
    await azure.until(running=0)


@both
async def test_hang_at_updated_passes_created_only(azure: RunningSimulator, path: str) -> None:
    with azure.fault("hang", stage="updated"):
        async with call(azure, path) as caller:
            await caller.hear("session.created")
            await caller.send("session.update", session={"type": "realtime"} if path is GA_PATH else {})
            with pytest.raises(TimeoutError):
                await caller.hear("session.updated", timeout_s=0.3)
    await azure.until(running=0)


@pytest.mark.parametrize("stage", ["handshake", "created", "updated"])
async def test_slow_waits_at_its_stage(azure: RunningSimulator, stage: str) -> None:
    with azure.fault("slow", seconds=0.3, stage=stage):
        began = time.monotonic()
        async with call(azure) as caller:
            await caller.hear("session.created")
            if stage != "updated":
                assert time.monotonic() - began >= 0.3
            await caller.send("session.update", session={"type": "realtime"})
            await caller.hear("session.updated")
            assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 429, 503])
async def test_status_fault_refuses_handshake(azure: RunningSimulator, code: int) -> None:
    with azure.fault("status", code=code, headers={"retry-after": "3"}), pytest.raises(InvalidStatus) as refused:
        await _dial(azure)
    assert refused.value.response.status_code == code
    assert refused.value.response.headers["retry-after"] == "3"
    assert azure.requests[0].fault == "status"


async def test_redirect_points_where_told(azure: RunningSimulator) -> None:
    with azure.fault("redirect", location="/elsewhere", times=1), pytest.raises(InvalidStatus) as refused:
        await _dial(azure)
    assert [entry.status for entry in azure.requests] == [307, 404]
    assert azure.requests[1].path == "/elsewhere"
    assert refused.value.response.status_code == 404


async def test_reset_fault_breaks_handshake(azure: RunningSimulator) -> None:
    with azure.fault("reset"), pytest.raises(Exception, match=r"valid HTTP response|reset"):
        await _dial(azure)


@pytest.mark.parametrize("frames", [0, 1, 5])
async def test_drop_after_breaks_talk_after_frames(azure: RunningSimulator, frames: int) -> None:
    with azure.fault("drop_after", frames=frames):
        async with call(azure) as caller:
            await caller.send("response.create")
            with pytest.raises(ConnectionClosedError) as closed:
                await caller.hear("never")
    assert closed.value.rcvd is None
    assert len(caller.events) == frames
    await azure.until(running=0)


async def test_drop_after_takes_n_for_frames(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/", "fault": "drop_after", "n": 1})
    async with call(azure) as caller:
        with pytest.raises(ConnectionClosedError):
            await caller.hear("never")
    assert len(caller.events) == 1


async def test_drop_after_ends_by_eof_or_close(azure: RunningSimulator) -> None:
    with azure.fault("drop_after", frames=1, how="eof"):
        async with call(azure) as caller:
            with pytest.raises(ConnectionClosed) as closed:
                await caller.hear("never")
            assert closed.value.rcvd is None
    with azure.fault("drop_after", frames=1, how="close", code=1001):
        async with call(azure) as caller:
            with pytest.raises(ConnectionClosed) as closed:
                await caller.hear("never")
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001


@pytest.mark.parametrize("form", ["text", "array", "untyped", "binary"])
async def test_talk_goes_on_after_garbage(azure: RunningSimulator, form: str) -> None:
    with azure.fault("garbage", form=form):
        async with call(azure) as caller:
            await caller.hear("session.created")
            garbage = await caller.socket.recv()
            assert isinstance(garbage, bytes) is (form == "binary")
            with pytest.raises((ValueError, KeyError, TypeError)):
                json.loads(garbage)["type"]
            await caller.send("response.create")
            await caller.hear("response.done")


async def test_garbage_can_break_protocol(azure: RunningSimulator) -> None:
    with azure.fault("garbage", form="protocol"):
        async with call(azure) as caller:
            with pytest.raises(ConnectionClosedError) as closed:
                await caller.hear("never")
    assert closed.value.sent is not None
    assert closed.value.sent.code == 1002


@both
@pytest.mark.parametrize("fragmented", [False, True])
async def test_oversized_frame_whole_or_in_fragments(azure: RunningSimulator, path: str, fragmented: bool) -> None:
    with azure.fault("oversized_frame", bytes=20_000_000, fragmented=fragmented):
        async with call(azure, path, max_size=None) as caller:
            await caller.hear("session.created")
            pieces = [piece async for piece in caller.socket.recv_streaming(decode=False)]
    assert (len(pieces) > 1) is fragmented
    event = json.loads(b"".join(pieces))
    assert event["type"] == ("response.output_audio.delta" if path is GA_PATH else "response.audio.delta")
    assert len(event["delta"]) >= 20_000_000


async def test_flood_ends_with_its_count(azure: RunningSimulator) -> None:
    with azure.fault("flood", count=500):
        async with call(azure) as caller:
            for _ in range(500):
                await caller.hear("response.output_audio.delta")
            await caller.send("response.create", response={"output_modalities": ["text"]})
            await caller.hear("response.done")


async def test_endless_flood_ends_with_its_reader(azure: RunningSimulator) -> None:
    with azure.fault("flood"):
        async with call(azure) as caller:
            for _ in range(100):
                await caller.hear("response.output_audio.delta")
            caller.socket.transport.abort()
        await azure.until(running=0)
