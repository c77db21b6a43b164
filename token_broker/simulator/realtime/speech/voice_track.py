"""The simulated voice as a WebRTC track: audio that comes faster than real time is played at its own pace."""

import asyncio
import fractions
import time
from collections import deque
from collections.abc import Callable

import av
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from token_broker.simulator.audio import BYTES_PER_MS, SAMPLE_RATE_HZ

_FRAME_MS = 20
_FRAME_BYTES = _FRAME_MS * BYTES_PER_MS
_FRAME_SAMPLES = _FRAME_MS * SAMPLE_RATE_HZ // 1000
# RTP counts Opus in 48 kHz, whatever rate it was made from.
_RTP_TIME_BASE = fractions.Fraction(1, 48_000)
_RTP_TICKS = _FRAME_MS * 48
_BIT_RATE = 64_000
# A track that nobody has read for so long does not catch up: it goes on from now.
_LATE_S = 0.5


class VoiceTrack(MediaStreamTrack):
    """Silence, until something is queued. `drained` is called when the last of what was queued has been played."""

    kind = "audio"

    def __init__(self, drained: Callable[[], None]) -> None:
        super().__init__()
        self._drained = drained
        self._queued: deque[bytes] = deque()
        self._partial = bytearray()
        self._playing = False
        # Encoded here: aiortc's own encoder is set for telephony, and bends the waveform that tests compare.
        self._encoder = av.AudioCodecContext.create("libopus", "w")
        self._encoder.sample_rate = SAMPLE_RATE_HZ
        self._encoder.layout = "mono"
        self._encoder.format = "s16"
        self._encoder.bit_rate = _BIT_RATE
        self._encoder.options = {"application": "audio"}
        self._next_s = 0.0
        self._timestamp = 0

    def queue(self, pcm: bytes) -> None:
        self._partial += pcm
        while len(self._partial) >= _FRAME_BYTES:
            self._queued.append(bytes(self._partial[:_FRAME_BYTES]))
            del self._partial[:_FRAME_BYTES]
        self._playing = True

    def clear(self) -> None:
        """Drops what was not played yet."""
        self._queued.clear()
        self._partial.clear()
        self._playing = False

    async def recv(self) -> "av.Packet[av.AudioStream]":
        """The next 20 ms, encoded."""
        if self.readyState != "live":
            raise MediaStreamError
        now_s = time.monotonic()
        self._next_s = now_s if now_s - self._next_s > _LATE_S else self._next_s + _FRAME_MS / 1000
        await asyncio.sleep(max(self._next_s - now_s, 0))
        if self._queued:
            pcm = self._queued.popleft()
        elif self._playing:
            # The rest is shorter than a frame, and silence fills it up.
            pcm = bytes(self._partial).ljust(_FRAME_BYTES, b"\0")
            self.clear()
            self._drained()
        else:
            pcm = bytes(_FRAME_BYTES)
        frame = av.AudioFrame(format="s16", layout="mono", samples=_FRAME_SAMPLES)
        frame.planes[0].update(pcm)
        frame.sample_rate = SAMPLE_RATE_HZ
        (packet,) = self._encoder.encode(frame)
        packet.pts, packet.time_base = self._timestamp, _RTP_TIME_BASE
        self._timestamp += _RTP_TICKS
        return packet
