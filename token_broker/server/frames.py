"""WebSocket frames (RFC 6455 §5) as a server reads them: strictly, in linear time and within a budget.

Pure: no I/O and no clock.

The reader looks at every byte once. It unmasks what has arrived of a frame, and checks the UTF-8 of a text, as it
arrives: a message in a million pieces costs what its bytes cost, and an invalid one fails at its first wrong byte.
"""

import struct
from codecs import utf_8_decode

from websockets.frames import EXTERNAL_CLOSE_CODES
from websockets.speedups import apply_mask

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "OVERSIZED",
    "PING",
    "PONG",
    "TEXT",
    "FrameBudget",
    "FrameError",
    "FrameReader",
    "close_payload",
    "pong_frame",
    "text_frame_head",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

OVERSIZED = 0x10  # no opcode of the protocol's: a text with an image that was too large

NO_STATUS = 1005
PROTOCOL_ERROR = 1002
INVALID_TEXT = 1007
POLICY_VIOLATION = 1008
TOO_LARGE = 1009

_FIN = 0x80
_RESERVED = 0x70
_OPCODE = 0x0F
_CONTROL = 0x08  # this bit marks the opcodes of control frames
_OPCODES = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_MASKED = 0x80
_TEXT_AND_FIN = _FIN | TEXT
_PONG_AND_FIN = _FIN | PONG
_LONGEST_CONTROL_BYTES = 125
_SHORTEST_16_BIT = 126
_SHORTEST_64_BIT = 65_536
_SHORTEST_HEAD_BYTES = 6
_FIRST_PRIVATE_CODE, _LAST_PRIVATE_CODE = 3000, 4999
_HEAD_16 = struct.Struct("!BBH")
_HEAD_64 = struct.Struct("!BBQ")
_CODE = struct.Struct("!H")

_BURST_S = 10.000_01  # the fraction covers the rounding errors of the sums
# An honest client may have many seconds of audio on the way, in the smallest frames, when the server closes.
_MAX_SKIPPED_FRAMES = 1_000
# A frame of audio that comes in two reads is cheaper to hold until it is complete than to unmask and check in parts.
# Smaller texts are checked as they come; larger ones would be copied again with each read.
_HELD_UNTIL_COMPLETE = range(1_024, 16_384)
# A message with an image beyond the limit is read to its end and dropped, so that the connection can go on. The largest
# photographs of telephones have some 20 MiB as base64.
_LONGEST_DROPPED_BYTES = 67_108_864


class FrameError(Exception):
    """A frame that the server does not accept. Close the connection with `code` and `reason`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class FrameBudget:
    """Rate limit for frames of any kind, and a separate one for control frames.

    Each allows its frames a second, and a burst of ten seconds' worth. A rate of 0 is no limit. The caller sets `now_s`
    from any monotonic clock.

    Each frame moves the time at which the budget is full again by its share of a second (GCRA).
    """

    __slots__ = ("_control_due_s", "_control_share_s", "_due_s", "_share_s", "now_s")

    def __init__(self, frames_per_second: float, control_frames_per_second: float, now_s: float) -> None:
        self.now_s = self._due_s = self._control_due_s = now_s
        self._share_s = 1 / frames_per_second if frames_per_second else 0.0
        self._control_share_s = 1 / control_frames_per_second if control_frames_per_second else 0.0

    def spend(self) -> None:
        """Counts one frame. Raises FrameError (1008) when the budget is used up."""
        now_s, due_s = self.now_s, self._due_s
        due_s = max(now_s, due_s) + self._share_s
        if due_s - now_s > _BURST_S:
            raise FrameError(POLICY_VIOLATION, "too many messages")
        self._due_s = due_s

    def spend_control(self) -> None:
        """Counts one control frame, in addition to `spend`. Raises FrameError (1008)."""
        due_s = max(self._control_due_s, self.now_s) + self._control_share_s
        if due_s - self.now_s > _BURST_S:
            raise FrameError(POLICY_VIOLATION, "too many control frames")
        self._control_due_s = due_s


class FrameReader:
    """Reads what a client sends after the handshake: `feed` each piece of data, then `read` until it returns None.

    A text in whose first `max_message_bytes` there is `image_field` may have up to `max_image_bytes`. A longer one is
    returned as OVERSIZED, with no payload, when it is complete.
    """

    def __init__(
        self, *, max_message_bytes: int, budget: FrameBudget, image_field: bytes = b"", max_image_bytes: int = 0
    ) -> None:
        self.budget = budget
        self._max_bytes = max_message_bytes
        self._image_field = image_field
        self._max_image_bytes = max(max_image_bytes, max_message_bytes)
        self._message_bytes = 0  # of the incomplete message as far as it has come, dropped ones included
        self._has_image = False
        self._data = b""  # fed; read up to `_at`
        self._at = 0
        self._message: bytearray | None = None  # set while a message is incomplete
        self._opcode = TEXT  # of that message
        self._tail = b""  # the incomplete UTF-8 character at the end of a text message
        self._left = 0  # payload bytes still missing of the current data frame
        self._mask = b""  # of that frame, rotated to the next byte
        self._fin = True
        self._skipped = 0

    @property
    def pending(self) -> bool:
        """Whether there is data that `read` may not have seen yet."""
        return self._at < len(self._data)

    def feed(self, data: bytes) -> None:
        """Adds data. The caller feeds no more until `read` has returned None, or the data grows without limit."""
        if self._data:
            data = self._data[self._at :] + data
        self._data = data
        self._at = 0

    def drop(self) -> None:
        """Drops the data. The reader is not used again."""
        self._data, self._at, self._left, self._message = b"", 0, 0, None

    def whole_text(self, data: bytes) -> bytes | None:
        """The payload if `data` is exactly one text message and nothing is incomplete. Raises FrameError.

        Else None, and the caller feeds it. Most frames of a talk arrive like this, so they skip `feed` and `read`.
        """
        size = len(data)
        if self._data or self._message is not None or size < _SHORTEST_16_BIT or data[0] != _TEXT_AND_FIN:
            return None
        begin = 8
        if data[1] != _MASKED | 126 or (data[2] << 8 | data[3]) + begin != size or size - begin > self._max_bytes:
            return None
        self.budget.spend()
        return apply_mask(data[begin:], data[4:begin])

    def read(self) -> tuple[int, bytes] | None:
        """The next frame's opcode and payload, or None when it is incomplete.

        A fragmented message is returned with its last frame, under the opcode of its first; the earlier ones return
        CONTINUATION with no payload. The payload of a text is valid UTF-8, except when it came in one piece: then the
        caller checks it while decoding. Raises FrameError, after which the reader is not used again.
        """
        data, at = self._data, self._at
        if at == len(data):
            self._data = b""
            self._at = 0
            return None
        if self._left:
            return self._read_payload()
        head = _head(data, at)
        if head is None:
            self._compact()
            return None
        first, length, begin = head
        end = begin + length
        if first != _TEXT_AND_FIN or end > len(data) or self._message is not None or length > self._max_bytes:
            if (
                first == _TEXT_AND_FIN
                and self._message is None
                and length in _HELD_UNTIL_COMPLETE
                and length <= self._max_bytes
            ):
                self._compact()
                return None
            return self._read_other(first, length, begin)
        self.budget.spend()
        self._at = end
        return TEXT, apply_mask(data[begin:end], data[begin - 4 : begin])

    def skip_to_close(self) -> bool:
        """Skips the data, reading the heads of frames only. Whether a close frame is among them.

        Raises FrameError where a head is invalid, or more frames come than an honest client can have on the way.
        """
        data, at, left = self._data, self._at, self._left
        while True:
            skipped = min(left, len(data) - at)
            at += skipped
            left -= skipped
            head = None if left else _head(data, at)
            if head is None:
                break
            first, left, at = head
            if first & _OPCODE == CLOSE:
                return True
            self._skipped += 1
            if self._skipped > _MAX_SKIPPED_FRAMES:
                raise FrameError(POLICY_VIOLATION, "too many messages")
        self._data, self._at, self._left = data[at:], 0, left
        return False

    def _compact(self) -> None:
        """Drops what has been read, and keeps the incomplete head or frame at the end."""
        self._data = self._data[self._at :]
        self._at = 0

    def _read_other(self, first: int, length: int, begin: int) -> tuple[int, bytes] | None:
        """Reads any frame that is not a complete text in one frame."""
        opcode = first & _OPCODE
        if first & _RESERVED:
            raise FrameError(PROTOCOL_ERROR, "a reserved bit was set")
        if opcode not in _OPCODES:
            raise FrameError(PROTOCOL_ERROR, "an unknown opcode")
        if opcode & _CONTROL:
            if first < _FIN:
                raise FrameError(PROTOCOL_ERROR, "a control frame in fragments")
            if length > _LONGEST_CONTROL_BYTES:
                raise FrameError(PROTOCOL_ERROR, "a control frame was too long")
            end = begin + length
            if end > len(self._data):
                self._compact()
                return None
            self.budget.spend()
            if opcode != CLOSE:  # a close frame is the last one in any case
                self.budget.spend_control()
            self._at = end
            return opcode, apply_mask(self._data[begin:end], self._data[begin - 4 : begin])
        if (opcode == CONTINUATION) is (self._message is None):
            raise FrameError(PROTOCOL_ERROR, "a fragment out of order")
        starts = self._message is None
        longest = self._max_bytes
        if self._max_image_bytes > longest and (opcode if starts else self._opcode) == TEXT:
            longest = _LONGEST_DROPPED_BYTES
        if length + (0 if starts else self._message_bytes) > longest:
            raise FrameError(TOO_LARGE, "a message was too large")
        self.budget.spend()
        if starts:
            self._message, self._opcode, self._tail = bytearray(), opcode, b""
            self._message_bytes, self._has_image = 0, False
        self._fin = first >= _FIN
        self._mask = self._data[begin - 4 : begin]
        self._left = length
        self._at = begin
        return self._read_payload()

    def _read_payload(self) -> tuple[int, bytes] | None:
        """Reads what has arrived of a data frame's payload."""
        message = self._message
        assert message is not None  # noqa: S101  # set when the frame's head was read
        piece = self._data[self._at : self._at + self._left]
        came = len(piece)
        self._at += came
        self._left -= came
        piece = apply_mask(piece, self._mask)
        if self._message_bytes <= self._max_image_bytes:
            message += piece
        self._message_bytes += came
        if self._message_bytes > self._max_bytes and not self._has_image:
            if message.find(self._image_field, 0, self._max_bytes) < 0:
                raise FrameError(TOO_LARGE, "a message was too large")
            self._has_image = True
        if self._message_bytes > self._max_image_bytes:
            message.clear()
        whole = self._fin and not self._left
        if self._opcode == TEXT and (self._tail or not piece.isascii()):
            text = self._tail + piece
            try:
                _, decoded = utf_8_decode(text, "strict", whole)
            except UnicodeDecodeError:
                raise FrameError(INVALID_TEXT, "a text was not UTF-8") from None
            self._tail = text[decoded:]
        if self._left:
            rotated = came % 4
            self._mask = self._mask[rotated:] + self._mask[:rotated]
            self._compact()
            return None
        if not whole:
            return CONTINUATION, b""
        self._message = None
        if self._message_bytes > self._max_image_bytes:
            return OVERSIZED, b""
        return self._opcode, bytes(message)


def _head(data: bytes, at: int) -> tuple[int, int, int] | None:
    """The first byte of the frame at `at`, and its payload's length and offset; None when more data is needed.

    Raises FrameError where the frame is not masked.
    """
    have = len(data) - at
    if have < 2:  # noqa: PLR2004
        return None
    length = data[at + 1] - _MASKED
    if length < 0:
        raise FrameError(PROTOCOL_ERROR, "a frame was not masked")
    if have < _SHORTEST_HEAD_BYTES:
        return None
    begin = at + 6
    if length == 126:  # noqa: PLR2004
        begin += 2
        length = (data[at + 2] << 8) | data[at + 3]
    elif length == 127:  # noqa: PLR2004
        begin += 8
        length = int.from_bytes(data[at + 2 : at + 10], "big")
    return (data[at], length, begin) if begin <= len(data) else None


def close_payload(payload: bytes) -> tuple[int, str]:
    """Code and reason of a close frame; 1005 where it has none. Raises FrameError."""
    if not payload:
        return NO_STATUS, ""
    if len(payload) < _CODE.size:
        raise FrameError(PROTOCOL_ERROR, "a close frame was too short")
    (code,) = _CODE.unpack_from(payload)
    if code not in EXTERNAL_CLOSE_CODES and not _FIRST_PRIVATE_CODE <= code <= _LAST_PRIVATE_CODE:
        raise FrameError(PROTOCOL_ERROR, "a close code that nobody may send")
    try:
        return code, payload[_CODE.size :].decode()
    except UnicodeDecodeError:
        raise FrameError(INVALID_TEXT, "a close reason was not UTF-8") from None


def pong_frame(payload: bytes) -> bytes:
    """The pong that answers a ping with this payload (RFC 6455 §5.5.3)."""
    return bytes((_PONG_AND_FIN, len(payload))) + payload


def text_frame_head(payload_bytes: int) -> bytes:
    """The head of an unmasked, unfragmented text frame with a payload of this length (RFC 6455 §5.2)."""
    if payload_bytes < _SHORTEST_16_BIT:
        return bytes((_TEXT_AND_FIN, payload_bytes))
    if payload_bytes < _SHORTEST_64_BIT:
        return _HEAD_16.pack(_TEXT_AND_FIN, 126, payload_bytes)
    return _HEAD_64.pack(_TEXT_AND_FIN, 127, payload_bytes)
