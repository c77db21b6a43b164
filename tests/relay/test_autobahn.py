"""The server's WebSocket passes Autobahn's cases strictly, and a broken server fails them."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.relay.autobahn.cases import CASES
from tests.relay.autobahn.client import INFORMATIONAL, OK, play
from tests.relay.autobahn.server import echo_server
from token_broker.server import frames
from token_broker.server.websocket_protocol import BrokerWebSocketProtocol

LOOPS = ("asyncio", "uvloop")
# The same code reads the frames on either loop, and only the transport differs. So asyncio plays each section's first
# case, except for the megabytes of section 9.
FIRST_CASES = {name for name in CASES if (name.endswith(".1") and name.count(".") == 1) or name.endswith(".1.1")}
SECTIONS = sorted({name.partition(".")[0] for name in CASES}, key=int)
PLAYED = [("uvloop", section) for section in SECTIONS] + [("asyncio", each) for each in SECTIONS if each != "9"]


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """The ports of the echo servers, by their event loop."""
    with contextlib.ExitStack() as stack:
        yield {loop: stack.enter_context(echo_server(loop)) for loop in LOOPS}


def test_all_autobahn_cases_are_present() -> None:
    assert len(CASES) == 301  # Autobahn's own number, without compression


@pytest.mark.parametrize(("loop", "section"), PLAYED)
def test_server_passes_autobahn_section(ports: dict[str, int], loop: str, section: str) -> None:
    names = [name for name in CASES if name.startswith(f"{section}.") and (loop == "uvloop" or name in FIRST_CASES)]
    assert names
    failed = {}
    for name in names:
        verdict = play(CASES[name], ports[loop])
        expected = (INFORMATIONAL if CASES[name].informational else OK, OK)
        if (verdict.behavior, verdict.closing) != expected:
            failed[name] = (verdict.behavior, verdict.closing, verdict.why)
    assert failed == {}


def no_pongs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BrokerWebSocketProtocol, "_send_owed_pong", lambda _: None)


def pongs_of_its_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "pong_frame", lambda payload: b"\x8a\x05other")


def any_opcode(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "_RESERVED", 0)
    patch.setattr(frames, "_OPCODES", frozenset(range(16)))


def no_utf8(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "utf_8_decode", lambda text, errors, whole: ("", len(text)))


def any_close_code(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "close_payload", lambda payload: (1000, ""))


def never_closes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BrokerWebSocketProtocol, "_on_close", lambda self, code, reason: None)


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (no_pongs, "2.2"),
        (pongs_of_its_own, "2.4"),
        (any_opcode, "3.1"),
        (any_opcode, "4.1.1"),
        (no_utf8, "6.4.1"),
        (any_close_code, "7.9.1"),
        (never_closes, "7.3.3"),
    ],
)
def test_broken_server_fails_autobahn_case(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None], name: str
) -> None:
    broken(monkeypatch)
    with echo_server("uvloop") as port:
        verdict = play(CASES[name], port, patience_s=0.5)
    assert (verdict.behavior, verdict.closing) != (OK, OK)
