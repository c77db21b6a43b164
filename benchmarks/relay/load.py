"""The load, in a process of its own: `python -m benchmarks.relay.load` reads a job as JSON and prints a result.

`rate` 0 is ping-pong: each connection sends its next frame when the last came back. Else it sends so many frames a
second whatever comes back, each with its time in it, and the way there and back is measured frame by frame; the talks
are spread over the time between two frames, `share` of `shares` being this process's part. With `flood`, Azure is asked
for all that it can send, and nothing more is read.
"""

import asyncio
import contextlib
import gc
import json
import sys
import time
from collections import Counter
from typing import Any

import picows
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, WSUpgradeResponse

_HEAD = b'{"type":"input_audio_buffer.append","audio":"'
_STAMP_CHARS = 16
_READY = (b"broker.ready", b"session.updated")
_AT_ONCE = 50
_TEXT = WSMsgType.TEXT


class Talk(WSListener):
    """One connection; its first event says that it is ready."""

    def __init__(self, filler: bytes) -> None:
        self.loop = asyncio.get_running_loop()
        self.ready = self.loop.create_future()
        self.spoken = self.loop.create_future()
        self.back = 0
        self.sent = 0
        self.latencies: Counter[int] = Counter()  # in steps of `STEP_US`
        self.measuring = False
        self.ping_pong = False
        self.transport: WSTransport | None = None
        self._filler = filler

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def send(self) -> None:
        assert self.transport is not None
        self.sent += 1
        stamp = b"%016d" % (time.monotonic_ns() // 1000)
        self.transport.send(_TEXT, _HEAD + stamp + self._filler)

    def speak(self, period_s: float, frames: int, at_s: float) -> None:
        """Sends so many frames, one each period, from `at_s` on; the first second warms up."""
        if frames == 0:
            self.spoken.set_result(None)
            return
        self.measuring = self.measuring or self.sent * period_s >= 1
        self.send()
        at_s += period_s
        self.loop.call_at(at_s, self.speak, period_s, frames - 1, at_s)

    def flood(self) -> None:
        assert self.transport is not None
        self.transport.send(_TEXT, b'{"type":"benchmark.flood"}')
        self.transport.underlying_transport.pause_reading()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE and not self.ready.done():
            self.ready.set_exception(ConnectionError(f"refused: {frame.get_close_code()} {frame.get_close_reason()}"))
            transport.disconnect()
        if kind != _TEXT:
            return
        payload = frame.get_payload_as_bytes()
        at = payload.find(b'"delta":"')
        if at < 0:
            if not self.ready.done() and any(name in payload[:80] for name in _READY):
                self.ready.set_result(None)
            return
        self.back += 1
        if self.measuring:
            stamp = int(payload[at + 9 : at + 9 + _STAMP_CHARS])
            self.latencies[(time.monotonic_ns() // 1000 - stamp) // STEP_US] += 1
        if self.ping_pong:
            self.send()


STEP_US = 10


async def connect(target: dict[str, Any], filler: bytes) -> Talk:
    def make(request: WSUpgradeRequest, response: WSUpgradeResponse) -> Talk:
        del request, response
        return Talk(filler)

    headers = {"Sec-WebSocket-Protocol": ", ".join(target["protocols"])} if target["protocols"] else {}
    _, talk = await picows.ws_connect(make, target["url"], extra_headers=headers, websocket_handshake_timeout=30)
    assert isinstance(talk, Talk)
    if not target["protocols"]:  # nothing but a plain pipe: the session is ours to begin
        assert talk.transport is not None
        talk.transport.send(_TEXT, b'{"type":"session.update"}')
    async with asyncio.timeout(30):
        await talk.ready
    return talk


async def main() -> None:
    job = json.loads(sys.stdin.readline())
    filler = b"A" * (job["frame_bytes"] - len(_HEAD) - _STAMP_CHARS - 2) + b'"}'
    talks: list[Talk] = []
    targets = job["targets"]
    for start in range(0, len(targets), _AT_ONCE):
        talks += await asyncio.gather(*(connect(target, filler) for target in targets[start : start + _AT_ONCE]))
    if job["flood"]:
        for talk in talks:
            talk.flood()
    gc.freeze()
    gc.disable()  # nothing here makes cycles that last
    print("connected", flush=True)
    sys.stdin.readline()
    print(json.dumps(await measured(talks, job)), flush=True)
    sys.stdin.readline()
    for talk in talks:
        with contextlib.suppress(Exception):
            assert talk.transport is not None
            talk.transport.disconnect(graceful=False)


async def measured(talks: list[Talk], job: dict[str, Any]) -> dict[str, Any]:
    """Lets the talks go, and tells what came back."""
    began = time.monotonic()
    if job["rate"]:
        period_s = 1 / job["rate"]
        first_s = asyncio.get_running_loop().time()
        places = len(talks) * job["shares"]
        for number, talk in enumerate(talks):
            at_s = first_s + (number * job["shares"] + job["share"]) / places * period_s
            talk.loop.call_at(at_s, talk.speak, period_s, int(job["rate"] * job["seconds"]), at_s)
        await asyncio.gather(*(talk.spoken for talk in talks))
        await all_back(talks)
    else:
        for talk in talks:
            talk.ping_pong = True
            talk.send()
        await asyncio.sleep(job["seconds"])
        for talk in talks:
            talk.ping_pong = False
    latencies: Counter[int] = Counter()
    for talk in talks:
        latencies.update(talk.latencies)
    return {
        "round_trips": sum(talk.back for talk in talks),
        "lost": sum(talk.sent - talk.back for talk in talks),
        "seconds": time.monotonic() - began,
        "latencies": {str(step * STEP_US): count for step, count in latencies.items()},
    }


async def all_back(talks: list[Talk]) -> None:
    """Waits for stragglers: what has not come after ten seconds is lost."""
    deadline = time.monotonic() + 10
    while sum(talk.sent - talk.back for talk in talks) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    uvloop.run(main())
