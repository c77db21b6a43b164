"""WebSocket frames (RFC 6455 §5.2) as far as the fast way past uvicorn's parser needs to know them. Pure."""

import struct

__all__ = ["FrameEdge", "text_frame", "text_frame_head"]

_TEXT_AND_FIN = 0x81
_SHORTEST_16_BIT = 126
_SHORTEST_64_BIT = 65_536
_MASKED = 0x80
_SHORTEST_FRAME = 6
_LONGEST_HEAD = 10
_HEAD_16 = struct.Struct("!BBH")
_HEAD_64 = struct.Struct("!BBQ")


def text_frame_head(payload_bytes: int) -> bytes:
    """What stands before an unmasked, unfragmented text message of that length (RFC 6455 §5.2)."""
    if payload_bytes < _SHORTEST_16_BIT:
        return bytes((_TEXT_AND_FIN, payload_bytes))
    if payload_bytes < _SHORTEST_64_BIT:
        return _HEAD_16.pack(_TEXT_AND_FIN, 126, payload_bytes)
    return _HEAD_64.pack(_TEXT_AND_FIN, 127, payload_bytes)


def text_frame(data: bytes) -> tuple[int, int] | None:
    """Where the payload begins and ends of the masked text message, in one frame, that `data` begins with.

    It may end beyond `data`. None for any other frame, for one of 64 KiB or more, and while too little is there to say.
    """
    if len(data) < _SHORTEST_FRAME or data[0] != _TEXT_AND_FIN or data[1] < _MASKED:
        return None
    length = data[1] - _MASKED
    begin = 6
    if length == 126:  # noqa: PLR2004
        length = (data[2] << 8) | data[3]
        begin = 8
        if length < _SHORTEST_16_BIT or len(data) < begin:
            return None
    elif length == 127:  # noqa: PLR2004
        return None  # rare, and long enough that its parsing does not count
    return begin, begin + length


class FrameEdge:
    """Follows the frames' lengths through data that somebody else parses, to know where a frame begins."""

    def __init__(self) -> None:
        self.between_frames = True
        self._head = b""  # of a frame, while its length is not yet known
        self._left = 0  # of a frame's payload and mask

    def walk(self, data: bytes) -> None:
        """Goes on by `data`, wherever that begins and ends."""
        self._walk(data)
        self.between_frames = not self._left and not self._head

    def _walk(self, data: bytes) -> None:
        while data:
            if self._left:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
                continue
            head = self._head + data[: _LONGEST_HEAD - len(self._head)]
            size = _head_bytes(head)
            if size is None or len(head) < size:
                self._head = head
                return
            data = data[size - len(self._head) :]
            self._head = b""
            extended = head[2:size]
            payload = int.from_bytes(extended, "big") if extended else head[1] & 0x7F
            self._left = payload + (4 if head[1] & _MASKED else 0)


def _head_bytes(head: bytes) -> int | None:
    """How long the part of a frame's head is that ends with its length; None while that can't be told."""
    if len(head) < 2:  # noqa: PLR2004
        return None
    return 2 + {126: 2, 127: 8}.get(head[1] & 0x7F, 0)
