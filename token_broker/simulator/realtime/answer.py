"""One answer of the model's on its way out: what it says, and when each piece of it is due.

Pure: it is asked with the time, and gives what is due by then. The audio comes faster than real time, as Azure's does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from token_broker.simulator.audio import BYTES_PER_MS, duration_ms, tone
from token_broker.simulator.realtime.conversation import FunctionOutput, Item, Message

CHUNK_MS = 100
_CHUNK_BYTES = CHUNK_MS * BYTES_PER_MS
_WORD_S = 0.02
# What came due while the socket was not looked at comes in portions, so that a cancel is heard in between.
_MOST_AT_ONCE = 10
_TONE_A_WORD_MS = 150
_SHORTEST_TONE_MS = 300
_LONGEST_TONE_MS = 3000
_LONGEST_QUOTE = 500


@dataclass(frozen=True, slots=True)
class SpeechRate:
    """How fast answers come: `thinking_s` before the first piece, then `speed` times real time."""

    thinking_s: float = 0.05
    speed: float = 5.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer; either part may be empty."""

    text: str
    pcm: bytes = b""


@dataclass(frozen=True, slots=True)
class Script:
    """What is to be said. Without PCM it is only written."""

    text: str
    pcm: bytes = b""

    def pieces(self) -> list[Piece]:
        """The words, spread evenly over the audio."""
        words = [word + " " for word in self.text.split(" ")]
        words[-1] = words[-1].rstrip()
        if not self.pcm:
            return [Piece(word) for word in words]
        cuts = [self.pcm[begin : begin + _CHUNK_BYTES] for begin in range(0, len(self.pcm), _CHUNK_BYTES)]
        shares = [math.ceil(len(words) * number / len(cuts)) for number in range(len(cuts) + 1)]
        return [
            Piece("".join(words[first:last]), cut) for cut, first, last in zip(cuts, shares, shares[1:], strict=False)
        ]


class Answer:
    """A script being said since `began_s`."""

    def __init__(self, script: Script, speech_rate: SpeechRate, began_s: float) -> None:
        self.spoken = bool(script.pcm)
        self._pieces = script.pieces()
        self._step_s = CHUNK_MS / 1000 / speech_rate.speed if script.pcm else _WORD_S
        self._first_s = began_s + speech_rate.thinking_s
        self._next = 0

    @property
    def finished(self) -> bool:
        return self._next == len(self._pieces)

    @property
    def due_s(self) -> float:
        """When the next piece, or the end, is due."""
        return self._first_s + self._next * self._step_s

    def take(self, now_s: float) -> Iterator[Piece]:
        """The pieces that are due."""
        for _ in range(_MOST_AT_ONCE):
            if self.finished or self.due_s > now_s:
                return
            self._next += 1
            yield self._pieces[self._next - 1]


def script_for(items: Sequence[Item], speaks: bool) -> Script:
    """The answer to what was last said, written, or given by a function; text alone unless it `speaks`."""
    text, pcm = "hello", b""
    for item in reversed(items):
        if isinstance(item, FunctionOutput):
            text = f"the function gave: {item.output[:_LONGEST_QUOTE]}"
            break
        if isinstance(item, Message) and item.role == "user":
            text, pcm = _reply_to(item)
            break
    text = f"[simulated] {text}"
    return Script(text, (pcm or tone(_tone_ms(text))) if speaks else b"")


def _reply_to(message: Message) -> tuple[str, bytes]:
    """Speech is answered with itself, byte for byte; text with a quotation."""
    speech = b"".join(part.pcm for part in message.parts)
    if speech:
        return f"you said {duration_ms(speech) / 1000:.1f} s of speech", speech
    written = " ".join(part.text for part in message.parts if part.kind == "text" and part.text)
    return f"you wrote: {written[:_LONGEST_QUOTE]}", b""


def _tone_ms(text: str) -> int:
    return min(max(len(text.split(" ")) * _TONE_A_WORD_MS, _SHORTEST_TONE_MS), _LONGEST_TONE_MS)
