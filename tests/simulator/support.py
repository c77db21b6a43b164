"""What the realtime tests share: speech-like audio, a plain client of a talk, and how well two recordings agree."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import websockets

from token_broker.simulator import RunningSimulator

GA_PATH = "/openai/v1/realtime?model=gpt-realtime"
VOICE_LIVE_PATH = "/voice-live/realtime?api-version=2025-10-01&model=gpt-realtime"
PREVIEW_PATH = "/openai/realtime?api-version=2025-04-01-preview&deployment=gpt-realtime"
KEY = {"api-key": "simulated-key"}

Samples = npt.NDArray[np.float64]


def speech(seconds: float, seed: int = 1) -> bytes:
    """A voiced, syllable-shaped sound with noise in it: loud from end to end, and like no other part of itself."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 24_000)) / 24_000
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.7 * t + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / 24_000
    voiced = sum(np.sin(n * phase + n * n) / n for n in range(1, 12))
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * t)
    sound = 0.12 * syllables * voiced + 0.01 * rng.standard_normal(t.size)
    return pcm_of(sound)


def silence(seconds: float) -> bytes:
    return bytes(int(seconds * 24_000) * 2)


def pcm_of(samples: Samples) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def samples_of(pcm: bytes) -> Samples:
    return np.frombuffer(pcm, "<i2").astype(np.float64)


def correlation(said: bytes, heard: bytes) -> float:
    """The best normalised cross-correlation of two recordings, over every shift between them."""
    a, b = samples_of(said), samples_of(heard)
    size = 1 << (a.size + b.size).bit_length()
    product = np.fft.irfft(np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size)), size)
    return float(np.abs(product).max() / np.sqrt((a @ a) * (b @ b)))


class Caller:
    """A client of a talk that keeps every event it gets."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []

    async def send(self, name: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": name, **fields}))

    async def say(self, pcm: bytes, piece_ms: int = 20) -> None:
        for begin in range(0, len(pcm), piece_ms * 48):
            audio = base64.b64encode(pcm[begin : begin + piece_ms * 48]).decode()
            await self.send("input_audio_buffer.append", audio=audio)

    async def hear(self, name: str, timeout_s: float = 20) -> dict[str, Any]:
        """The next event of that name; those before it are kept as well."""
        async with asyncio.timeout(timeout_s):
            while True:
                event: dict[str, Any] = json.loads(await self.socket.recv())
                self.events.append(event)
                if event["type"] == name:
                    return event

    def heard(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == name]

    def audio(self) -> bytes:
        """All audio that came."""
        names = ("response.audio.delta", "response.output_audio.delta")
        return b"".join(base64.b64decode(event["delta"]) for event in self.events if event["type"] in names)


@asynccontextmanager
async def call(
    azure: RunningSimulator, path: str = GA_PATH, headers: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[Caller]:
    """A talk that has begun."""
    url = azure.websocket_url + path
    given = KEY if headers is None else headers
    async with websockets.connect(url, additional_headers=given, compression=None, **options) as socket:
        yield Caller(socket)
