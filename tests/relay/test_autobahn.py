"""The server's WebSocket passes Autobahn's cases strictly, and a broken server fails them."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.relay.autobahn.cases import SECTIONS, cases_of
from tests.relay.autobahn.client import INFORMATIONAL, OK, play
from tests.relay.autobahn.server import echo_server
from token_broker.server import frames
from token_broker.server.websocket_protocol import BrokerWebSocketProtocol

LOOPS = ("asyncio", "uvloop")
PLAYED = [("uvloop", section) for section in SECTIONS] + [
    ("asyncio", section) for section in SECTIONS if section != "9"
]


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """The ports of the echo servers, by their event loop."""
    with contextlib.ExitStack() as stack:
        yield {loop: stack.enter_context(echo_server(loop)) for loop in LOOPS}


def test_all_autobahn_cases_are_present() -> None:
    assert sum(1 for section in SECTIONS.values() for _ in section()) == 301  # Autobahn's own, without compression


def is_first(name: str) -> bool:
    return name.endswith(".1.1") or (name.endswith(".1") and name.count(".") == 1)


@pytest.mark.parametrize(("loop", "section"), PLAYED)
def test_server_passes_autobahn_section(ports: dict[str, int], loop: str, section: str) -> None:
    # The same code reads the frames on either loop, and only the transport differs. So asyncio plays each section's
    # first cases, except for the megabytes of section 9.
    cases = [case for case in cases_of(section).values() if loop == "uvloop" or is_first(case.name)]
    assert cases
    failed = {}
    for case in cases:
        verdict = play(case, ports[loop])
        expected = (INFORMATIONAL if case.informational else OK, OK)
        if (verdict.behavior, verdict.closing) != expected:
            failed[case.name] = (verdict.behavior, verdict.closing, verdict.why)
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
        verdict = play(cases_of(name.partition(".")[0])[name], port, patience_s=0.5)
    assert (verdict.behavior, verdict.closing) != (OK, OK)
