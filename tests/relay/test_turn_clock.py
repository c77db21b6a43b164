"""How long users wait for answers: one sample a turn, and none that flatters."""

from typing import Any

import pytest

from token_broker.relay.answers.turn_clock import TurnClock, TurnLatency

Step = tuple[Any, ...]

STARTED: Step = ("speech_started",)
STOPPED: Step = ("speech_stopped",)
COMMITTED: Step = ("committed",)


def created(response_id: str, **more: Any) -> Step:
    return ("created", response_id, more)


def done(response_id: str, status: str = "completed", *calls: str, **more: Any) -> Step:
    return ("done", response_id, status, calls, more)


def sound(response_id: str) -> Step:
    return ("sound", response_id)


def after(seconds: float) -> Step:
    return ("after", seconds)


def measured(steps: list[Step]) -> list[tuple[float, str]]:
    """What a clock says of a talk in which these steps are taken; each takes no time."""
    clock, now_s, found = TurnClock(), 100.0, list[TurnLatency]()
    for step in steps:
        match step:
            case ("after", seconds):
                now_s += seconds
            case ("sound", response_id):
                delta = f'{{"type":"response.output_audio.delta","response_id": "{response_id}","delta":"AAAA"}}'
                if clock.waits and (turn := clock.sounded(delta, now_s)) is not None:
                    found.append(turn)
            case ("heard", response_id):
                found += filter(None, [clock.began_to_sound(response_id, now_s)])
            case ("created", response_id, more):
                reason = more.pop("reason", None)
                clock.azure_sent(
                    {"type": "response.created", "response": {"id": response_id, **more}}, now_s, reason=reason
                )
            case ("done", response_id, status, calls, more):
                response = {"id": response_id, "status": status, "output": [{"type": kind} for kind in calls]}
                clock.azure_sent({"type": "response.done", "response": response}, now_s, **more)
            case ("client", kind, *item):
                clock.client_sent(kind, {"item": item[0]} if item else {}, now_s)
            case ("error", code):
                clock.azure_sent({"type": "error", "error": {"code": code}}, now_s)
            case ("cut",):
                clock.cut()
            case (kind,):
                clock.azure_sent({"type": f"input_audio_buffer.{kind}"}, now_s)
    return [(round(turn.wait_s, 3), turn.begins) for turn in found]


SPOKE = [STARTED, after(2), STOPPED, COMMITTED]
COMMIT: Step = ("client", "input_audio_buffer.commit")
TYPED: Step = ("client", "conversation.item.create", {"role": "user"})
OUTPUT: Step = ("client", "conversation.item.create", {"type": "function_call_output"})


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param([*SPOKE, after(0.2), created("a"), after(0.3), sound("a")], [(0.5, "speech_stopped")], id="plain"),
        pytest.param(
            [*SPOKE, created("a"), after(1), sound("a"), after(1), sound("a")], [(1, "speech_stopped")], id="once"
        ),
        pytest.param(
            [COMMIT, after(0.1), COMMITTED, created("a"), after(1), sound("a")], [(1.1, "commit")], id="push to talk"
        ),
        pytest.param(
            [COMMIT, ("error", "input_audio_buffer_commit_empty"), TYPED, created("a"), after(1), sound("a")],
            [],
            id="empty commit",
        ),
        pytest.param([created("a", reason="greeting"), sound("a")], [], id="greeting"),
        pytest.param(
            [created("g", reason="greeting"), *SPOKE, sound("g"), done("g"), created("a"), after(1), sound("a")],
            [(1, "speech_stopped")],
            id="speaks over the greeting",
        ),
        pytest.param([TYPED, created("a"), after(1), sound("a")], [], id="typed"),
        pytest.param([*SPOKE, TYPED, created("a"), after(1), sound("a")], [], id="spoken, then typed"),
        pytest.param(
            [*SPOKE, created("a"), TYPED, after(1), sound("a")], [(1, "speech_stopped")], id="typed into the answer"
        ),
        pytest.param([*SPOKE, created("a"), after(1), done("a", "failed"), created("b"), sound("b")], [], id="failed"),
        pytest.param(
            [*SPOKE, created("a"), after(1), done("a", "failed", again=True), created("b"), after(1), sound("b")],
            [(2, "speech_stopped")],
            id="failed and asked again",
        ),
        pytest.param([*SPOKE, created("a"), after(1), done("a", "cancelled"), sound("a")], [], id="cancelled"),
        pytest.param([*SPOKE, created("a"), done("a"), TYPED, created("b"), sound("b")], [], id="text alone"),
        pytest.param(
            # the old answer's sound comes after the user's next words, and even after the next answer has begun
            [
                *SPOKE,
                created("a"),
                after(1),
                sound("a"),
                STARTED,
                after(1),
                STOPPED,
                sound("a"),
                created("b"),
                sound("a"),
                after(2),
                sound("b"),
            ],
            [(1, "speech_stopped"), (2, "speech_stopped")],
            id="barge-in, late sound",
        ),
        pytest.param(
            [
                *SPOKE,
                created("a"),
                STARTED,
                after(1),
                STOPPED,
                ("heard", "a"),
                created("b"),
                ("heard", "a"),
                after(2),
                ("heard", "b"),
            ],
            [(2, "speech_stopped")],
            id="barge-in, late started",
        ),
        pytest.param(
            [
                *SPOKE,
                created("a"),
                after(1),
                done("a", "completed", "function_call"),
                after(3),
                OUTPUT,
                created("b"),
                after(1),
                sound("b"),
            ],
            [(5, "speech_stopped")],
            id="tool",
        ),
        pytest.param(
            [
                *SPOKE,
                created("a"),
                done("a", "completed", "function_call"),
                after(3),
                created("s", reason="say"),
                sound("s"),
                done("s"),
                after(4),
                created("b", reason="tools"),
                sound("b"),
            ],
            [(7, "speech_stopped")],
            id="words for the wait",
        ),
        pytest.param(
            [
                *SPOKE,
                created("a"),
                after(1),
                sound("a"),
                done("a", "completed", "function_call"),
                created("b"),
                sound("b"),
            ],
            [(1, "speech_stopped")],
            id="sound before the tool",
        ),
        pytest.param(
            [
                *SPOKE,
                created("o", conversation_id=None),
                sound("o"),
                created("a", conversation_id="conv"),
                after(1),
                sound("a"),
            ],
            [(1, "speech_stopped")],
            id="outside the conversation",
        ),
        pytest.param(
            [*SPOKE, created("a"), after(1), ("cut",), after(1), created("b"), after(1), sound("b")],
            [(3, "speech_stopped")],
            id="resume",
        ),
        pytest.param(
            [STARTED, ("cut",), STARTED, STOPPED, created("a"), sound("a"), *SPOKE, created("b"), after(1), sound("b")],
            [(1, "speech_stopped")],
            id="spoken into a resume",
        ),
        pytest.param(
            [
                ("cut",),
                COMMIT,
                COMMITTED,
                created("a"),
                sound("a"),
                COMMIT,
                COMMITTED,
                created("b"),
                after(1),
                sound("b"),
            ],
            [(1, "commit")],
            id="commit held over a resume",
        ),
        pytest.param(
            [*SPOKE, after(3), *SPOKE, created("a"), after(1), sound("a")], [(1, "speech_stopped")], id="goes on"
        ),
    ],
)
def test_one_sample_a_turn(steps: list[Step], expected: list[tuple[float, str]]) -> None:
    assert measured(steps) == expected


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": "response.created"},
        {"type": "response.done", "response": []},
        {"type": "error", "error": "no object"},
        {"type": "response.done", "response": {"output": "no list"}},
    ],
)
def test_odd_events_are_no_matter(event: dict[str, Any]) -> None:
    clock = TurnClock()
    clock.azure_sent(event, 0.0)
    assert not clock.waits
    assert clock.sounded("no event", 1.0) is None
