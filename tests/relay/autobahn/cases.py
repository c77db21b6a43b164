"""What each case sends, what has to come back, and who has to close with what. Numbered as Autobahn numbers them."""

import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from websockets.speedups import apply_mask

__all__ = ["SECTIONS", "Case", "Event", "Pause", "Ping", "Send", "cases_of", "frame"]

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NORMAL, PROTOCOL_ERROR, INVALID_PAYLOAD = 1000, 1002, 1007
MASK = b"\x37\xfa\x21\x3d"
KI, MI = 2**10, 2**20

Event = tuple[str, bytes]


@dataclass(frozen=True)
class Send:
    """Bytes to send, in pieces of `chop` where that is set, or else as the network likes."""

    data: bytes
    chop: int = 0


@dataclass(frozen=True)
class Pause:
    """Time for the server to close; where it has not, `("timeout", name)` is noted."""

    name: bytes


@dataclass(frozen=True)
class Ping:
    """So many messages, each sent when the one before has come back."""

    message: Event
    count: int


@dataclass(frozen=True)
class Case:
    """`expected`: what has to be received, and no more. `lenient`: what Autobahn calls NON-STRICT.

    With `ours` we close, with 1000 as soon as all has come; `closing` says that the steps do so. Else the server has to
    close. `codes` are those that its close frame may have; without one it may as well only drop the connection, unless
    it has to be `clean`. `informational`: the standard does not say.
    """

    name: str
    steps: tuple[Send | Pause | Ping, ...]
    expected: tuple[Event, ...] = ()
    lenient: tuple[Event, ...] | None = None
    ours: bool = True
    closing: bool = False
    codes: tuple[int, ...] = (NORMAL,)
    clean: bool = True
    informational: bool = False


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """A masked frame."""
    size = len(payload)
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65_536:
        head += b"\xfe" + struct.pack("!H", size)
    else:
        head += b"\xff" + struct.pack("!Q", size)
    return head + MASK + apply_mask(payload, MASK)


def fragmented(opcode: int, payload: bytes, size: int) -> bytes:
    """A message in fragments of so many bytes."""
    parts = [payload[at : at + size] for at in range(0, len(payload), size)]
    last = len(parts) - 1
    return b"".join(frame(CONT if number else opcode, part, fin=number == last) for number, part in enumerate(parts))


def close(code: int | None = NORMAL, reason: bytes = b"") -> bytes:
    return frame(CLOSE, (b"" if code is None else struct.pack("!H", code)) + reason)


def text(payload: bytes) -> Event:
    return ("text", payload)


def echoed(name: str, payload: bytes, *steps: Send | Pause, opcode: int = TEXT) -> Case:
    return Case(name, steps or (Send(frame(opcode, payload)),), ((("text", "binary")[opcode - 1], payload),))


def failed(name: str, *steps: Send | Pause, code: int = PROTOCOL_ERROR, after: tuple[Event, ...] = ()) -> Case:
    """The server has to fail the connection; `after` having handled what was right before."""
    return Case(name, steps, after, () if after else None, ours=False, codes=(code,), clean=False)


def closed(name: str, *steps: Send, codes: tuple[int, ...] = (NORMAL,), clean: bool = True) -> Case:
    return Case(name, steps, closing=True, codes=codes, clean=clean)


def chopped(*frames: bytes, chop: int = 1) -> tuple[Send, ...]:
    return tuple(Send(data, chop) for data in frames)


def whole(*frames: bytes) -> tuple[Send, ...]:
    return (Send(b"".join(frames)),)


def separate(*frames: bytes) -> tuple[Send, ...]:
    return tuple(map(Send, frames))


def framing() -> Iterator[Case]:
    for section, opcode, filler in ((1, TEXT, b"*"), (2, BINARY, b"\xfe")):
        sizes = (0, 125, 126, 127, 128, 65_535, 65_536)
        for number, size in enumerate(sizes, start=1):
            yield echoed(f"1.{section}.{number}", filler * size, opcode=opcode)
        payload = filler * 65_536
        yield echoed(f"1.{section}.8", payload, Send(frame(opcode, payload), 997), opcode=opcode)


def pings() -> Iterator[Case]:
    odd = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
    for number, payload in enumerate((b"", b"Hello, world!", odd, b"\xfe" * 125), start=1):
        yield Case(f"2.{number}", whole(frame(PING, payload)), (("pong", payload),))
    yield failed("2.5", *whole(frame(PING, b"\xfe" * 126)))
    yield Case("2.6", chopped(frame(PING, b"\xfe" * 125)), (("pong", b"\xfe" * 125),))
    unasked = b"unsolicited pong payload"
    yield closed("2.7", *whole(frame(PONG), close()))
    yield closed("2.8", *whole(frame(PONG, unasked), close()))
    yield Case("2.9", whole(frame(PONG, unasked), frame(PING, b"ping payload")), (("pong", b"ping payload"),))
    ten = [b"payload-%d" % number for number in range(10)]
    pongs = tuple(("pong", payload) for payload in ten)
    yield Case("2.10", whole(*(frame(PING, payload) for payload in ten)), pongs)
    yield Case("2.11", chopped(*(frame(PING, payload) for payload in ten)), pongs)


def reserved_bits() -> Iterator[Case]:
    hello = b"Hello, world!"
    good, ping = frame(TEXT, hello), frame(PING)
    yield failed("3.1", *whole(frame(TEXT, hello, rsv=1)))
    yield failed("3.2", *whole(good, frame(TEXT, hello, rsv=2), ping), after=(text(hello),))
    yield failed("3.3", *separate(good, frame(TEXT, hello, rsv=3), ping), after=(text(hello),))
    yield failed("3.4", *chopped(good, frame(TEXT, hello, rsv=4), ping), after=(text(hello),))
    yield failed("3.5", *whole(frame(BINARY, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", rsv=5)))
    yield failed("3.6", *whole(frame(BINARY, hello, rsv=6)))
    yield failed("3.7", *whole(frame(CLOSE, rsv=7)))


def opcodes() -> Iterator[Case]:
    hello = b"Hello, world!"
    good, ping = frame(TEXT, hello), frame(PING)
    for section, first in ((1, 3), (2, 11)):
        yield failed(f"4.{section}.1", *whole(frame(first)))
        yield failed(f"4.{section}.2", *whole(frame(first + 1, b"reserved opcode payload")))
        yield failed(f"4.{section}.3", *whole(good, frame(first + 2), ping), after=(text(hello),))
        yield failed(f"4.{section}.4", *whole(good, frame(first + 3, hello), ping), after=(text(hello),))
        yield failed(f"4.{section}.5", *chopped(good, frame(first + 4, hello), ping), after=(text(hello),))


def fragmentation() -> Iterator[Case]:
    one, two = b"fragment1", b"fragment2"
    for number, opcode in ((1, PING), (2, PONG)):
        yield failed(f"5.{number}", *whole(frame(opcode, one, fin=False), frame(CONT, two)))
    both = (frame(TEXT, one, fin=False), frame(CONT, two))
    pinged = (both[0], frame(PING, b"ping payload"), both[1])
    orphan = frame(CONT, b"non-continuation payload")
    begun = frame(CONT, b"non-continuation payload", fin=False)
    for offset, steps in enumerate((whole, separate, chopped)):
        yield echoed(f"5.{3 + offset}", one + two, *steps(*both))
        yield Case(f"5.{6 + offset}", steps(*pinged), (("pong", b"ping payload"), text(one + two)))
        yield failed(f"5.{9 + offset}", *steps(orphan, frame(TEXT, b"Hello, world!")))
        yield failed(f"5.{12 + offset}", *steps(begun, frame(TEXT, b"Hello, world!")))
    again = (*both, frame(CONT, b"fragment3", fin=False), frame(TEXT, b"fragment4"))
    yield failed("5.15", *whole(*again), after=(text(one + two),))
    for number, fin in ((16, False), (17, True)):
        wrong = (frame(CONT, one, fin=fin), frame(TEXT, two, fin=False), frame(CONT, b"fragment3"))
        yield failed(f"5.{number}", *whole(*wrong * 2))
    yield failed("5.18", *whole(frame(TEXT, one, fin=False), frame(TEXT, two)))
    parts = [frame(CONT if number > 1 else TEXT, b"fragment%d" % number, fin=number == 5) for number in range(1, 6)]
    first = (parts[0], parts[1], frame(PING, b"pongme 1!"))
    then = (parts[2], parts[3], frame(PING, b"pongme 2!"), parts[4])
    message = b"".join(b"fragment%d" % number for number in range(1, 6))
    for number, steps in ((19, whole), (20, separate)):
        expected = (("pong", b"pongme 1!"), ("timeout", b"A"), ("pong", b"pongme 2!"), text(message))
        yield Case(f"5.{number}", (*steps(*first), Pause(b"A"), *steps(*then)), expected)


def utf8() -> Iterator[Case]:
    yield echoed("6.1.1", b"")
    yield echoed("6.1.2", b"", *whole(frame(TEXT, fin=False), frame(CONT, fin=False), frame(CONT)))
    middle = b"middle frame payload"
    yield echoed("6.1.3", middle, *whole(frame(TEXT, fin=False), frame(CONT, middle, fin=False), frame(CONT)))
    first, last = "Hello-µ@ßöä".encode(), "üàá-UTF-8!!".encode()
    kosme = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"
    yield echoed("6.2.1", first + last)
    yield echoed("6.2.2", first + last, *whole(frame(TEXT, first, fin=False), frame(CONT, last)))
    yield echoed("6.2.3", first + last, Send(fragmented(TEXT, first + last, 1)))
    yield echoed("6.2.4", kosme, Send(fragmented(TEXT, kosme, 1)))
    wrong = kosme + b"\xed\xa0\x80edited"
    yield failed("6.3.1", *whole(frame(TEXT, wrong)), code=INVALID_PAYLOAD)
    yield failed("6.3.2", *whole(fragmented(TEXT, wrong, 1)), code=INVALID_PAYLOAD)
    yield from utf8_at_once(kosme)
    for section, (_, sequences) in enumerate(utf8_sequences(kosme), start=5):
        for number, (valid, payload) in enumerate(sequences, start=1):
            name = f"6.{section}.{number}"
            yield echoed(name, payload) if valid else failed(name, *whole(frame(TEXT, payload)), code=INVALID_PAYLOAD)


def utf8_at_once(kosme: bytes) -> Iterator[Case]:
    """A wrong text is to fail at its first wrong byte, not at its end."""
    rest = b"edited"
    wrong = kosme + b"\xf4\x90\x80\x80" + rest
    for number, cuts in ((1, (11, 15)), (2, (12, 13))):
        pieces = (wrong[: cuts[0]], wrong[cuts[0] : cuts[1]], wrong[cuts[1] :])
        frames = [frame(CONT if index else TEXT, piece, fin=index == 2) for index, piece in enumerate(pieces)]
        yield fails_at_once(f"6.4.{number}", frames)
        data = frame(TEXT, wrong)
        one, two = (len(data) - len(wrong) + cut for cut in cuts)
        yield fails_at_once(f"6.4.{number + 2}", [data[:one], data[one:two], data[two:]])


def fails_at_once(name: str, parts: list[bytes]) -> Case:
    steps = (Send(parts[0]), Pause(b"A"), Send(parts[1]), Pause(b"B"), Send(parts[2]))
    case = failed(name, *steps, code=INVALID_PAYLOAD)
    return replace(case, expected=(("timeout", b"A"),), lenient=(("timeout", b"A"), ("timeout", b"B")))


def utf8_sequences(kosme: bytes) -> Iterator[tuple[str, list[tuple[bool, bytes]]]]:
    """Markus Kuhn's UTF-8 decoder stress test, as Autobahn has it."""

    def valid(*payloads: bytes) -> list[tuple[bool, bytes]]:
        return [(True, payload) for payload in payloads]

    def invalid(*payloads: bytes) -> list[tuple[bool, bytes]]:
        return [(False, payload) for payload in payloads]

    words = (b"hello\x24world", b"hello\xc2\xa2world", b"hello\xe2\x82\xacworld", b"hello\xf0\xa4\xad\xa2world")
    yield "some valid sequences", valid(*words, kosme)
    ends = {2, 5, 7, 9, 11}
    yield "all prefixes of a valid string", [(end in ends, kosme[:end]) for end in range(1, len(kosme) + 1)]
    yield "first of a length", valid(b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80")
    yield "first of length 5 and 6", invalid(b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80")
    yield "last of a length", valid(b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf")
    yield (
        "last of length 4, 5 and 6",
        invalid(b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"),
    )
    boundaries = valid(b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf")
    yield "other boundaries", boundaries + invalid(b"\xf4\x90\x80\x80")
    lonely = [(b"\x80\xbf" * 3)[:length] for length in range(2, 7)]
    yield "unexpected continuations", invalid(b"\x80", b"\xbf", *lonely, bytes(range(0x80, 0xBF)))
    ranges = ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))
    starts = [b"".join(bytes([byte, 0x20]) for byte in range(*span)) for span in ranges]
    yield "lonely starts", invalid(*starts)
    missing = [
        *(b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80"),
        *(b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf"),
    ]
    yield "last continuation missing", invalid(*missing)
    yield "incomplete ones together", invalid(b"".join(missing))
    yield "impossible bytes", invalid(b"\xfe", b"\xff", b"\xfe\xfe\xff\xff")
    for what, heads, tail in (
        (
            "overlong ASCII",
            (b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80"),
            b"\xaf",
        ),
        (
            "longest overlong ones",
            (b"\xc1", b"\xe0\x9f", b"\xf0\x8f\xbf", b"\xf8\x87\xbf\xbf", b"\xfc\x83\xbf\xbf\xbf"),
            b"\xbf",
        ),
        (
            "overlong NUL",
            (b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80"),
            b"\x80",
        ),
    ):
        yield what, invalid(*(head + tail for head in heads))
    singles = [
        b"\xed" + pair
        for pair in (b"\xa0\x80", b"\xad\xbf", b"\xae\x80", b"\xaf\xbf", b"\xb0\x80", b"\xbe\x80", b"\xbf\xbf")
    ]
    yield "single surrogates", invalid(*singles)
    highs, lows = (
        (b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf"),
        (b"\xed\xb0\x80", b"\xed\xbf\xbf"),
    )
    yield "paired surrogates", invalid(*(high + low for high, low in itertools.product(highs, lows)))
    planes = [(plane << 16) | last for plane in range(1, 17) for last in (0xFFFE, 0xFFFF)]
    yield "non-characters", valid(b"\xef\xbf\xbe", b"\xef\xbf\xbf", *(chr(point).encode() for point in planes))
    yield "specials", valid(*(chr(point).encode() for point in range(0xFFF9, 0x10000)))


def closing() -> Iterator[Case]:
    hello = b"Hello World!"
    yield echoed("7.1.1", hello)
    yield closed("7.1.2", *whole(close(), frame(CLOSE)))
    yield closed("7.1.3", *whole(close(), frame(PING)))
    yield closed("7.1.4", *whole(close(), frame(TEXT, hello)))
    yield closed("7.1.5", *whole(frame(TEXT, b"fragment1", fin=False), close(), frame(CONT, b"fragment2")))
    large = (b"BAsd7&jh23" * 26_215)[: 256 * KI]
    much = whole(frame(TEXT, large), frame(TEXT, hello), close(), frame(PING))
    yield replace(closed("7.1.6", *much), expected=(text(large), text(hello)), informational=True)
    yield closed("7.3.1", *whole(close(None)), codes=())
    yield closed("7.3.2", *whole(frame(CLOSE, b"a")), codes=(PROTOCOL_ERROR,), clean=False)
    yield closed("7.3.3", *whole(close()))
    yield closed("7.3.4", *whole(close(NORMAL, hello)))
    yield closed("7.3.5", *whole(close(NORMAL, b"*" * 123)))
    yield closed("7.3.6", *whole(close(NORMAL, b"*" * 124)), codes=(PROTOCOL_ERROR,), clean=False)
    wrong = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited"
    yield closed("7.5.1", *whole(close(NORMAL, wrong)), codes=(PROTOCOL_ERROR, INVALID_PAYLOAD), clean=False)
    allowed = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    for number, code in enumerate(allowed, start=1):
        yield closed(f"7.7.{number}", *whole(close(code)), codes=(NORMAL, code))
    for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), start=1):
        yield closed(f"7.9.{number}", *whole(close(code)), codes=(PROTOCOL_ERROR,), clean=False)
    for number, code in enumerate((5000, 65_535), start=1):
        case = closed(f"7.13.{number}", *whole(close(code)), codes=(NORMAL, PROTOCOL_ERROR, code), clean=False)
        yield replace(case, informational=True)


def limits() -> Iterator[Case]:
    kinds = ((TEXT, b"BAsd7&jh23"), (BINARY, b"\x00\xfe\x23\xfa\xf0"))
    for section, (opcode, pattern) in enumerate(kinds, start=1):
        for number, size in enumerate((64 * KI, 256 * KI, MI, 4 * MI, 8 * MI, 16 * MI), start=1):
            yield echoed(f"9.{section}.{number}", _long(pattern, size), opcode=opcode)
    for section, (opcode, pattern) in enumerate(kinds, start=3):
        payload = _long(pattern, 4 * MI)
        for number in range(9):
            data = Send(fragmented(opcode, payload, 64 * 4**number))
            yield echoed(f"9.{section}.{number + 1}", payload, data, opcode=opcode)
    for section, (opcode, pattern) in enumerate(kinds, start=5):
        payload = _long(pattern, MI)
        for number in range(6):
            data = Send(frame(opcode, payload), chop=64 << number)
            yield echoed(f"9.{section}.{number + 1}", payload, data, opcode=opcode)
    for section, (kind, filler) in enumerate((("text", b"*"), ("binary", b"\xfe")), start=7):
        for number, size in enumerate((0, 16, 64, 256, 1024, 4096), start=1):
            yield Case(f"9.{section}.{number}", (Ping((kind, filler * size), 1000),), ((kind, filler * size),) * 1000)


def _long(pattern: bytes, size: int) -> bytes:
    return (pattern * (size // len(pattern) + 1))[:size]


def automatic_fragments() -> Iterator[Case]:
    payload = b"*" * 65_536
    yield echoed("10.1.1", payload, Send(fragmented(TEXT, payload, 1300)))


SECTIONS: dict[str, Callable[[], Iterator[Case]]] = {
    "1": framing,
    "2": pings,
    "3": reserved_bits,
    "4": opcodes,
    "5": fragmentation,
    "6": utf8,
    "7": closing,
    "9": limits,
    "10": automatic_fragments,
}
"""Made when they are played: section 9 alone is 200 megabytes."""


def cases_of(section: str) -> dict[str, Case]:
    """A section's cases, by name."""
    return {case.name: case for case in SECTIONS[section]()}
