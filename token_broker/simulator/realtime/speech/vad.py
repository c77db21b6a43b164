"""Server VAD: tells speech from silence by its energy, and cuts the speech out, to the byte.

Pure: PCM goes in, `Started` and `Stopped` come out. Times are milliseconds of audio since the talk began, as the
events state them: a start includes the prefix padding, a stop the silence that told it (docs/azure.md §4.2, §6.2).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from token_broker.simulator.audio import BYTES_PER_MS, level

FRAME_MS = 20
_FRAME_BYTES = FRAME_MS * BYTES_PER_MS
# Fewer loud frames in a row are a click.
_ONSET_FRAMES = 3
# A part of the silence that ends a turn belongs to the speech: words fade out.
_TAIL_MS = 200
# A caller who never pauses is cut here, or one turn would grow without bound.
_LONGEST_TURN_MS = 120_000


@dataclass(frozen=True, slots=True)
class VadSettings:
    """How turns are told. `threshold` is 0 to 1, as in the API; here 0 stands for 70 dB below full scale, 1 for 20."""

    threshold: float = 0.6
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 800
    create_response: bool = True
    interrupt_response: bool = True

    @property
    def loudness(self) -> float:
        """The threshold as root mean square, 0 to 1."""
        return float(10 ** ((-70 + 50 * self.threshold) / 20))


@dataclass(frozen=True, slots=True)
class Started:
    """Speech began."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """Speech ended: `speech` is a cut of what came in, byte for byte, from its prefix until after its last sound."""

    at_ms: int
    speech: bytes


class SpeechDetector:
    """One talk's input, from the moment at which the detection was set."""

    def __init__(self, detection: VadSettings, position_ms: int = 0) -> None:
        self._detection = detection
        self._loudness = detection.loudness
        self._position_ms = position_ms
        self._partial = bytearray()
        self._kept = bytearray()
        self._speaking = False
        self._loud_frames = 0
        self._quiet_ms = 0

    @property
    def speaking(self) -> bool:
        return self._speaking

    def feed(self, pcm: bytes) -> Iterator[Started | Stopped]:
        """Takes audio in pieces of any size."""
        self._partial += pcm
        whole = len(self._partial) - len(self._partial) % _FRAME_BYTES
        frames, self._partial = bytes(self._partial[:whole]), self._partial[whole:]
        for begin in range(0, whole, _FRAME_BYTES):
            turn = self._take(frames[begin : begin + _FRAME_BYTES])
            if turn is not None:
                yield turn

    def cut(self) -> bytes:
        """Ends the turn by hand: all that is kept."""
        kept = bytes(self._kept + self._partial)
        self.clear()
        return kept

    def clear(self) -> None:
        self._partial.clear()
        self._kept.clear()
        self._speaking = False
        self._loud_frames = self._quiet_ms = 0

    def _take(self, frame: bytes) -> Started | Stopped | None:
        self._position_ms += FRAME_MS
        self._kept += frame
        loud = level(frame) >= self._loudness
        if not self._speaking:
            self._loud_frames = self._loud_frames + 1 if loud else 0
            if self._loud_frames >= _ONSET_FRAMES:
                self._speaking, self._quiet_ms = True, 0
                return Started(self._position_ms - len(self._kept) // BYTES_PER_MS)
            # Silence is kept as far as the prefix goes, or a quiet caller would fill the memory.
            window_ms = self._detection.prefix_padding_ms + self._loud_frames * FRAME_MS
            del self._kept[: -window_ms * BYTES_PER_MS or None]
            return None
        self._quiet_ms = 0 if loud else self._quiet_ms + FRAME_MS
        length_ms = len(self._kept) // BYTES_PER_MS
        if self._quiet_ms < max(self._detection.silence_duration_ms, FRAME_MS) and length_ms < _LONGEST_TURN_MS:
            return None
        speech_ms = length_ms - max(self._quiet_ms - _TAIL_MS, 0)
        stopped = Stopped(self._position_ms, bytes(self._kept[: speech_ms * BYTES_PER_MS]))
        self.clear()
        return stopped
