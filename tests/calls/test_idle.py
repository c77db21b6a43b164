"""When a call counts as idle: a table of what Azure sends, and of the times at which the call is still alive."""

import pytest

from token_broker.calls.sideband import IdleClock

IDLE_S = 30.0
SPOKEN = ("input_audio_buffer.speech_started", "{}")
STOPPED = ("input_audio_buffer.speech_stopped", "{}")
ASKED = ("response.created", "{}")
DONE = ("response.done", "{}")
SOUND = ("output_audio_buffer.started", "{}")
SILENT = ("output_audio_buffer.stopped", "{}")
TYPED = ("conversation.item.added", '{"item":{"role":"user","content":[{"type":"input_text"}]}}')
ALONE = ("input_audio_buffer.timeout_triggered", "{}")
LIMITS = ("rate_limits.updated", "{}")
UPDATED = ("session.updated", "{}")

Sent = list[tuple[float, tuple[str, str]]]


@pytest.mark.parametrize(
    ("sent", "at_s", "idle"),
    [
        ([], 29.0, False),
        ([], 30.0, True),
        ([(20.0, LIMITS), (25.0, UPDATED)], 31.0, True),
        ([(20.0, SPOKEN)], 49.0, False),
        ([(20.0, SPOKEN), (21.0, STOPPED)], 51.0, True),
        ([(20.0, TYPED)], 49.0, False),
        ([(1.0, ASKED)], 76.0, False),  # an answer of 75 s
        ([(1.0, ASKED), (2.0, DONE), (2.0, SOUND)], 76.0, False),  # that is still played
        ([(1.0, ASKED), (2.0, DONE), (2.0, SOUND), (75.0, SILENT)], 104.0, False),
        ([(1.0, ASKED), (2.0, DONE), (2.0, SOUND), (75.0, SILENT)], 105.0, True),
        ([(1.0, ASKED)], 640.0, True),  # an answer that never ends
        ([(10.0, ALONE), (10.0, ASKED), (20.0, DONE)], 30.0, True),  # Azure talks to itself
        ([(10.0, ALONE), (10.0, ASKED), (20.0, TYPED)], 49.0, False),
        ([(10.0, ALONE), (10.0, ASKED), (20.0, SPOKEN), (21.0, ASKED)], 80.0, False),
    ],
)
def test_call_is_idle(sent: Sent, at_s: float, *, idle: bool) -> None:
    clock = IdleClock(IDLE_S, 0.0)
    for now_s, (kind, text) in sent:
        clock.heard(kind, text, now_s)
    assert clock.is_idle(at_s) is idle


def test_tool_keeps_call_alive() -> None:
    clock = IdleClock(IDLE_S, 0.0)
    assert not clock.is_idle(45.0, tool_since_s=5.0)
    assert not clock.is_idle(74.0), "what follows the tool has its own time"
    assert clock.is_idle(75.0)
    assert clock.is_idle(700.0, tool_since_s=5.0), "a tool that never ends"


def test_time_alone_does_not_count() -> None:
    clock = IdleClock(IDLE_S, 0.0)
    clock.heard(*ASKED, 5.0)
    clock.leave(10.0)
    clock.join(100.0)
    assert not clock.is_idle(124.0)
    assert clock.is_idle(125.0), "the answer's end was missed"


def test_push_to_talk_may_be_silent() -> None:
    clock = IdleClock(300.0, 0.0)
    clock.heard(*DONE, 10.0)
    assert not clock.is_idle(10.0 + 4 * 60)
