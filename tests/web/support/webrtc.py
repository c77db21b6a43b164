"""Azure's side of a WebRTC call on loopback, with aiortc."""

import asyncio
import fractions
import itertools
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import numpy as np
from aioice import ice
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError
from av import AudioFrame, AudioResampler

from tests.web.support.partner import WIRE_RATE, Partner

__all__ = ["Call", "VoiceLiveCall"]

_RATE = 48_000
_FRAME_SAMPLES = 960  # 20 ms


class _Voice(AudioStreamTrack):
    """What the partner says, a frame every 20 ms; silence when it says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._frames: deque[np.ndarray[Any, np.dtype[np.int16]]] = deque()
        self._sent = 0
        self._began_s: float | None = None
        self.finished = asyncio.Event()

    def say(self, pcm: bytes) -> None:
        samples = np.repeat(np.frombuffer(pcm, "<i2"), 2).astype(np.float64)
        samples[1:-1:2] = (samples[0:-2:2] + samples[2::2]) / 2  # 24 to 48 kHz, by straight lines
        frames = samples.astype(np.int16)
        for start in range(0, len(frames), _FRAME_SAMPLES):
            frame = frames[start : start + _FRAME_SAMPLES]
            self._frames.append(np.pad(frame, (0, _FRAME_SAMPLES - len(frame))))
        self.finished.clear()

    async def recv(self) -> AudioFrame:
        loop = asyncio.get_running_loop()
        self._began_s = self._began_s or loop.time()
        await asyncio.sleep(max(0.0, self._began_s + self._sent / _RATE - loop.time()))
        samples = self._frames.popleft() if self._frames else np.zeros(_FRAME_SAMPLES, np.int16)
        if not self._frames:
            self.finished.set()
        frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = _RATE
        frame.pts = self._sent
        frame.time_base = fractions.Fraction(1, _RATE)
        self._sent += _FRAME_SAMPLES
        return frame


class _Nowhere:
    """A datagram transport that sends nothing more."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def sendto(self, *_given: Any) -> None:
        pass


class Call:
    """One call: `answer` its offer, then `close` it. `partner` is the other side."""

    def __init__(self, *, blocked: bool = False, dialect: str = "ga") -> None:
        ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
        self._peer = RTCPeerConnection()
        self._blocked = blocked
        self._voice = _Voice()
        self._channel: Any = None
        self._has_channel = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self.partner = Partner(self._tell, self._speak, dialect=dialect)

    async def answer(self, offer: str) -> str:
        """The SDP answer; where ICE is blocked, one that leads nowhere."""
        self._peer.on("datachannel", self._take_channel)
        self._peer.on("track", self._take_track)
        await self._peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        self._peer.addTrack(self._voice)
        await self._peer.setLocalDescription(await self._peer.createAnswer())
        sdp = str(self._peer.localDescription.sdp)
        if self._blocked:
            sdp = "".join(line for line in sdp.splitlines(keepends=True) if not line.startswith("a=candidate"))
            await self._peer.close()
        return sdp

    async def close_channel(self) -> None:
        """Closes the data channel."""
        await self.until_channel()
        self._channel.close()

    async def until_channel(self) -> None:
        """Returns once the data channel is here: for the client it may be open a moment earlier."""
        await self._has_channel.wait()

    def vanish(self) -> None:
        """Sends nothing more, and tells nobody: its network has gone."""
        assert self._peer.sctp
        for protocol in self._peer.sctp.transport.transport._connection._protocols:
            protocol.transport = _Nowhere(protocol.transport)  # type: ignore[assignment]

    async def close(self) -> None:
        tasks = [task for task in (self._listening, *self._stopping) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._peer.close()

    def _take_channel(self, channel: Any) -> None:
        self._channel = channel
        self._has_channel.set()

        async def take(message: str) -> None:
            await self.partner.take(json.loads(message))

        channel.on("message", take)

    def _take_track(self, track: Any) -> None:
        self._listening = asyncio.create_task(self._listen(track))

    async def _listen(self, track: Any) -> None:
        resampler = AudioResampler(format="s16", layout="mono", rate=WIRE_RATE)
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            for resampled in resampler.resample(frame):
                await self.partner.hear(resampled.to_ndarray().tobytes())

    async def _speak(self, pcm: bytes) -> None:
        self._voice.say(pcm)

        async def tell_the_end() -> None:
            await self._voice.finished.wait()
            await self._tell({"type": "output_audio_buffer.stopped"})

        task = asyncio.create_task(tell_the_end())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _tell(self, event: dict[str, Any]) -> None:
        if self._channel and self._channel.readyState == "open" and _passes_filter(event["type"]):
            self._channel.send(json.dumps(event))


class VoiceLiveCall(Call):
    """A call of Voice Live: `tell` writes to the socket that carried the offer, and some events go both ways.

    `channel` is whose data channel is used: the client's, one that the service opens, or none.
    """

    def __init__(
        self, tell: Callable[[dict[str, Any]], Awaitable[None]], channel: Literal["client's", "own", "none"]
    ) -> None:
        super().__init__(dialect="preview")
        self._tell_socket = tell
        self._numbers = itertools.count(1)
        self._uses = channel
        if channel == "own":
            self._channel = self._peer.createDataChannel("service-events")

    def _take_channel(self, channel: Any) -> None:
        if self._uses == "client's":
            super()._take_channel(channel)

    async def _tell(self, event: dict[str, Any]) -> None:
        event = {"event_id": f"event_{next(self._numbers)}", **event}
        if self._channel and self._channel.readyState == "open":
            self._channel.send(json.dumps(event))
        if event["type"].endswith(("transcription.completed", "audio_transcript.done", "output_item.done")):
            await self._tell_socket(event)


def _passes_filter(kind: str) -> bool:
    """`webrtcfilter=on` (docs/azure.md §5.2), but for calls of tools: with tools of the page's there is no filter."""
    return kind in {
        "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "output_audio_buffer.started",
        "output_audio_buffer.stopped", "conversation.item.input_audio_transcription.completed",
        "conversation.item.added", "conversation.item.created", "response.output_text.delta",
        "response.output_text.done", "response.output_audio_transcript.delta", "response.output_audio_transcript.done",
        "response.output_item.done",
    }  # fmt: skip
