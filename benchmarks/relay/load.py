"""The load, in a process of its own: `python -m benchmarks.relay.load` reads a `Job` as JSON and prints a `Result`.

`rate` 0 is ping-pong: each connection sends its next frame when the last came back. Else it sends so many frames a
second whatever comes back, each with its time in it, and the way there and back is measured frame by frame.
"""

import asyncio
import contextlib
import json
import math
import random
import sys
import time
from typing import Any

import picows
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, WSUpgradeResponse

_HEAD = b'{"type":"input_audio_buffer.append","audio":"'
_STAMP_CHARS = 16
_READY = (b"broker.ready", b"session.updated")


class Talk(WSListener):
    """One connection; its first event says that it is ready."""

    def __init__(self, filler: bytes) -> None:
        self.ready = asyncio.get_running_loop().create_future()
        self.back = 0
        self.sent = 0
        self.latencies_us: list[int] = []
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
        self.transport.send(WSMsgType.TEXT, _HEAD + stamp + self._filler)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE and not self.ready.done():
            self.ready.set_exception(ConnectionError(f"refused: {frame.get_close_code()} {frame.get_close_reason()}"))
            transport.disconnect()
        if frame.msg_type != WSMsgType.TEXT:
            return
        payload = frame.get_payload_as_bytes()
        at = payload.find(b'"delta":"')
        if at < 0:
            if not self.ready.done() and any(kind in payload[:80] for kind in _READY):
                self.ready.set_result(None)
            return
        self.back += 1
        if self.measuring:
            stamp = int(payload[at + 9 : at + 9 + _STAMP_CHARS])
            self.latencies_us.append(time.monotonic_ns() // 1000 - stamp)
        if self.ping_pong:
            self.send()


async def connect(target: dict[str, Any], filler: bytes) -> Talk:
    def make(request: WSUpgradeRequest, response: WSUpgradeResponse) -> Talk:
        del request, response
        return Talk(filler)

    headers = {"Sec-WebSocket-Protocol": ", ".join(target["protocols"])} if target["protocols"] else {}
    _, talk = await picows.ws_connect(make, target["url"], extra_headers=headers, websocket_handshake_timeout=30)
    assert isinstance(talk, Talk)
    if not target["protocols"]:  # nothing but a plain pipe: the session is ours to begin
        assert talk.transport is not None
        talk.transport.send(WSMsgType.TEXT, b'{"type":"session.update"}')
    async with asyncio.timeout(30):
        await talk.ready
    return talk


async def main() -> None:
    job = json.loads(sys.stdin.readline())
    filler = b"A" * (job["frame_bytes"] - len(_HEAD) - _STAMP_CHARS - 2) + b'"}'
    talks: list[Talk] = []
    targets = job["targets"]
    for start in range(0, len(targets), 50):
        talks += await asyncio.gather(*(connect(target, filler) for target in targets[start : start + 50]))
    print("connected", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    if job["rate"]:
        await asyncio.gather(*(speak(talk, job["rate"], job["seconds"]) for talk in talks))
        await all_back(talks)
    else:
        for talk in talks:
            talk.ping_pong = True
            talk.send()
        await asyncio.sleep(job["seconds"])
        for talk in talks:
            talk.ping_pong = False
    elapsed = time.monotonic() - began
    latencies = sorted(value for talk in talks for value in talk.latencies_us)
    result = {
        "round_trips": sum(talk.back for talk in talks),
        "lost": sum(talk.sent - talk.back for talk in talks),
        "seconds": elapsed,
        "ms": {f"p{share}": percentile(latencies, share) / 1000 for share in (50, 99)} if latencies else {},
    }
    print(json.dumps(result), flush=True)
    sys.stdin.readline()
    for talk in talks:
        with contextlib.suppress(Exception):
            assert talk.transport is not None
            talk.transport.disconnect(graceful=False)


async def all_back(talks: list[Talk]) -> None:
    """Waits for stragglers: what has not come after ten seconds is lost."""
    deadline = time.monotonic() + 10
    while sum(talk.sent - talk.back for talk in talks) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def speak(talk: Talk, rate: int, seconds: float) -> None:
    """Real-time pace, each talk with its own phase; the first second warms up."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(random.random() / rate)
    began = loop.time()
    for number in range(int(rate * seconds)):
        talk.measuring = number > rate
        talk.send()
        await asyncio.sleep(max(0.0, began + (number + 1) / rate - loop.time()))


def percentile(ordered: list[int], share: float) -> float:
    return float(ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)])


if __name__ == "__main__":
    uvloop.run(main())
