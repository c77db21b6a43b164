"""The client's latest audio, as it was sent. Pure.

It is kept since Azure may be lost before it has transcribed and answered an utterance (docs/azure.md §8.1). Nothing is
decoded while a talk goes well: an append costs one entry of a deque. Positions count the base64 characters since the
talk began, so that a time of Azure's is a position, but for the padding of each append.
"""

import base64
import binascii
import json
from array import array
from collections import deque
from collections.abc import Sequence

__all__ = ["HeldAudio", "Payload", "first_loud_ms", "may_be_loud"]

Payload = bytes | str

_PLAIN_OVERHEAD = len('{"type":"input_audio_buffer.append","audio":""}')
_HEAD_CHARS = len('{"type":"input_audio_buffer.append","audio":"')
_TAIL_CHARS = len('"}')
_LOOKED_AT_CHARS = 256
_LOUD = 1_000  # of 32,768: above a quiet room, below speech
_PREFIX_MS = 300  # before the first loud sound: words fade in
_CHARS_A_MS = 64
_STEP_MS = 20
_SAMPLES_A_MS = 24


class HeldAudio:
    """At most `most_chars` of the latest appends; older ones are dropped as newer ones come."""

    def __init__(self, most_chars: int) -> None:
        self.start = 0
        self.end = 0
        self.most_chars = most_chars
        self._appends: deque[Payload] = deque()

    def append(self, payload: Payload) -> None:
        """Keeps an `input_audio_buffer.append` that went to Azure."""
        self._appends.append(payload)
        self.end += len(payload) - _PLAIN_OVERHEAD
        if self.end - self.start > self.most_chars:
            self._drop_first()

    def drop_before(self, position: int, *, quiet_from: int | None = None) -> None:
        """Forgets the appends that end at or before `position`; from `quiet_from` on, only while they are quiet."""
        appends = self._appends
        while appends and (after := self.start + len(appends[0]) - _PLAIN_OVERHEAD) <= position:
            if quiet_from is not None and after > quiet_from and may_be_loud(appends[0]):
                return
            self._drop_first()

    def may_have_speech(self, start: int, end: int) -> bool:
        """Whether an append between the two positions is loud."""
        return any(map(may_be_loud, self.between(start, end)))

    def between(self, start: int, end: int) -> list[Payload]:
        """The appends of which a part lies between the two positions, as far as they are kept."""
        found = []
        position = self.start
        for payload in self._appends:
            after = position + len(payload) - _PLAIN_OVERHEAD
            if after > start and position < end:
                found.append(payload)
            position = after
        return found

    def speech_from(self, start: int, *, skip_ms: int) -> list[Payload]:
        """The appends from `start` on, without the silence before the first loud one; none where all are quiet.

        `skip_ms` of them are not looked at. It is for PCM16 at 24 kHz.
        """
        loud_ms = first_loud_ms(self.between(start, self.end), skip_ms=skip_ms)
        if loud_ms is None:
            return []
        return self.between(max(start, self.start) + max(loud_ms - _PREFIX_MS, 0) * _CHARS_A_MS, self.end)

    def _drop_first(self) -> None:
        self.start += len(self._appends.popleft()) - _PLAIN_OVERHEAD


def may_be_loud(payload: Payload) -> bool:
    """Whether an append may be speech, by 4 ms from its middle: to decode all of them would cost too much.

    It is taken for PCM16. What cannot be read so counts as loud.
    """
    middle = _HEAD_CHARS + (len(payload) - _PLAIN_OVERHEAD) // 16 * 8  # eight characters are three samples
    part = payload[middle : min(middle + _LOOKED_AT_CHARS, len(payload) - _TAIL_CHARS)]
    try:
        pcm = binascii.a2b_base64(part[: len(part) // 8 * 8])
    except ValueError:
        return True
    return max(map(abs, array("h", pcm)), default=0) > _LOUD


def first_loud_ms(appends: Sequence[Payload], *, skip_ms: int = 0) -> int | None:
    """Where speech may begin in audio of 24 kHz PCM16: the time of the first loud step after `skip_ms`.

    None: all of it is quiet. Audio that cannot be read counts as loud.
    """
    try:
        samples = array(
            "h", b"".join(base64.b64decode(json.loads(payload)["audio"], validate=True) for payload in appends)
        )
    except (ValueError, KeyError, TypeError):
        return 0
    step = _STEP_MS * _SAMPLES_A_MS
    for begin in range(skip_ms * _SAMPLES_A_MS, len(samples), step):
        if max(map(abs, samples[begin : begin + step : 4]), default=0) > _LOUD:
            return begin // _SAMPLES_A_MS
    return None
