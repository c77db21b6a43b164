"""A browser's part of a WebRTC call, played by aiortc."""

import asyncio
import json
from typing import Any

import av
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from token_broker.simulator.realtime.speech.voice_track import VoiceTrack


class Phone:
    """Says `pcm` (24 kHz, PCM16 mono) and keeps what it hears."""

    def __init__(self, pcm: bytes, label: str = "oai-events") -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        microphone = VoiceTrack(lambda: None)
        microphone.queue(pcm)
        self.connection.addTrack(microphone)
        self.channel = self.connection.createDataChannel(label)
        self.closed = asyncio.Event()
        self.answer_type = ""
        self.events: list[dict[str, Any]] = []
        self._heard = bytearray()
        self._arrived = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self.channel.on("message", self._take)
        self.channel.on("close", self.closed.set)
        self.connection.on("track", self._listen_to)

    async def offer(self) -> str:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return str(self.connection.localDescription.sdp)

    async def connect(self, answer: str) -> None:
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    def send(self, name: str, **fields: Any) -> None:
        self.channel.send(json.dumps({"type": name, **fields}))

    async def hear(self, name: str, timeout_s: float = 20, count: int = 1) -> dict[str, Any]:
        """The first event of that name, or another."""
        async with asyncio.timeout(timeout_s):
            while True:
                self._arrived.clear()
                named = [event for event in self.events if event["type"] == name]
                if len(named) >= count:
                    return named[count - 1]
                await self._arrived.wait()

    def names(self) -> list[str]:
        return [event["type"] for event in self.events]

    def heard(self) -> bytes:
        return bytes(self._heard)

    async def hang_up(self) -> None:
        await self.connection.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    def _take(self, message: str) -> None:
        self.events.append(json.loads(message))
        self._arrived.set()

    def _listen_to(self, track: MediaStreamTrack) -> None:
        self._listening = asyncio.ensure_future(self._listen(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=24_000)
        try:
            while True:
                received = await track.recv()
                assert isinstance(received, av.AudioFrame)
                for frame in resampler.resample(received):
                    self._heard += bytes(frame.planes[0])[: frame.samples * 2]
        except MediaStreamError:
            return
