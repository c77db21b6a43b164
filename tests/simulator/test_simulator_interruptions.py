"""Cuts and silences of a talk: at which moment they come, and what a dead socket sends when it wakes."""

import base64
import json
from typing import Any

import pytest

from tests.simulator.scene import SESSIONS, names_of, user_text
from tests.simulator.support import silence, speech
from token_broker.simulator.faults.fault_table import FaultTable, parse_faults
from token_broker.simulator.faults.interruptions import Cut, Interruptions, Outgoing, Pongs
from token_broker.simulator.realtime.dialects import GA, VOICE_LIVE, Dialect
from token_broker.simulator.realtime.simulated_talk import SimulatedTalk, TalkOptions

PATH = "/openai/v1/realtime"


class Interrupted:
    """A talk behind its interruptions, with a clock of the test's own. `out` is what went out."""

    def __init__(self, *faults: dict[str, Any], dialect: Dialect = GA) -> None:
        self.table = FaultTable()
        self.set(*faults)
        self.now_s = 100.0
        self.talk = SimulatedTalk(dialect, SESSIONS[dialect.name], TalkOptions(), 1_800_000_000)
        self.interruptions = Interruptions(self.table, PATH)
        self.out: list[Outgoing] = self.interruptions.open(self.now_s)
        self._pass_on(self.talk.open(self.now_s))

    def set(self, *faults: dict[str, Any]) -> None:
        self.table.replace(parse_faults([{"match": "/openai", **fault} for fault in faults]))

    def send(self, name: str, **fields: Any) -> None:
        self._pass_on(self.talk.receive(json.dumps({"type": name, **fields}), self.now_s))

    def ask(self, text: str = "Tell me a story.") -> None:
        self.send("conversation.item.create", item=user_text(text))
        self.send("response.create")
        self.wait(20)

    def say(self, seconds: float = 1) -> None:
        pcm = speech(seconds) + silence(1)
        self.send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())
        self.wait(20)

    def wait(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while (due_s := min(self.talk.due_s, self.interruptions.due_s)) <= until_s and not self.interruptions.cut:
            self.now_s = max(due_s, self.now_s)
            self.look()
            self._pass_on(self.talk.advance(self.now_s))
        self.now_s = until_s

    def look(self) -> None:
        """As a socket does when faults were set."""
        self.out += self.interruptions.advance(self.now_s)

    @property
    def names(self) -> list[str]:
        return names_of([item for item in self.out if isinstance(item, dict)])

    @property
    def cuts(self) -> list[Cut]:
        return [item for item in self.out if isinstance(item, Cut)]

    def sound_ms(self) -> int:
        deltas = [item["delta"] for item in self.out if isinstance(item, dict) and "output_audio.delta" in item["type"]]
        return sum(len(base64.b64decode(delta)) for delta in deltas) // 48

    def _pass_on(self, events: list[dict[str, Any]]) -> None:
        self.out += self.interruptions.pass_on(events, self.now_s)


@pytest.mark.parametrize(
    ("point", "last"),
    [
        ("session.created", "session.created"),
        ("speech_started", "input_audio_buffer.speech_started"),
        ("speech_stopped", "input_audio_buffer.speech_stopped"),
        ("committed", "input_audio_buffer.committed"),
        ("response.created", "response.created"),
        ("first_content", "response.output_audio_transcript.delta"),
        ("last_sound", "response.output_audio.delta"),
        ("last_content", "response.output_item.done"),
        ("response.done", "response.done"),
    ],
)
def test_cut_comes_at_its_point(point: str, last: str) -> None:
    cut = Interrupted({"fault": "cut", "at": point})
    cut.say()
    assert cut.out[-1] == Cut("reset", 1011, "simulated")
    assert cut.out[-2]["type"] == last  # type: ignore[index]
    assert len(cut.cuts) == 1


def test_cut_at_handshake_sends_nothing() -> None:
    cut = Interrupted({"fault": "cut", "at": "handshake", "how": "close", "code": 1013, "reason": "gone"})
    cut.ask()
    assert cut.out == [Cut("close", 1013, "gone")]


def test_cut_after_some_sound() -> None:
    cut = Interrupted({"fault": "cut", "at": "sound", "ms": 600})
    cut.say(2)
    assert cut.sound_ms() == 600
    assert isinstance(cut.out[-1], Cut)


def test_cut_between_two_items() -> None:
    tools = [{"type": "function", "name": "look_up", "parameters": {}}]
    cut = Interrupted({"fault": "cut", "at": "between_items"})
    cut.send("session.update", session={"type": "realtime", "tools": tools})
    cut.ask("[call look_up] and [call look_up]")
    assert cut.names.count("response.output_item.done") == 1
    assert cut.names[-1] == "response.output_item.done"
    assert len(cut.cuts) == 1


def test_skip_lets_first_answers_pass() -> None:
    cut = Interrupted({"fault": "cut", "at": "response.created", "skip": 2})
    for _ in range(2):
        cut.ask()
    assert cut.names.count("response.done") == 2
    cut.ask()
    assert cut.names[-1] == "response.created"
    assert len(cut.cuts) == 1


def test_cut_comes_some_time_after_its_point() -> None:
    cut = Interrupted({"fault": "cut", "at": "response.created", "seconds": 0.12})
    cut.ask()
    assert 0 < cut.sound_ms() < 600
    assert isinstance(cut.out[-1], Cut)


def test_times_count_talks_that_were_cut() -> None:
    cut = Interrupted({"fault": "cut", "at": "response.created", "times": 0})
    cut.ask()
    assert cut.names[-1] == "response.done"


def test_now_strikes_open_talks_only() -> None:
    cut = Interrupted({"fault": "cut"})
    cut.look()
    assert cut.cuts == []
    cut.set({"fault": "cut"})
    cut.look()
    assert len(cut.cuts) == 1


@pytest.mark.parametrize("point", ["committed", "response.created", "first_content", "last_content"])
def test_silence_begins_at_its_point(point: str) -> None:
    silent = Interrupted({"fault": "silence", "at": point})
    silent.say()
    count = len(silent.out)
    silent.ask()
    assert len(silent.out) == count
    assert silent.interruptions.silent
    assert "response.done" not in silent.names


def test_silence_can_leave_pings_unanswered() -> None:
    silent = Interrupted({"fault": "silence", "at": "response.created", "lasts_s": 30, "pongs": False})
    silent.ask()
    assert silent.out[-1] == Pongs(on=False)
    silent.wait(15)
    assert Pongs(on=True) in silent.out


@pytest.mark.parametrize("dialect", [GA, VOICE_LIVE], ids=lambda dialect: dialect.name)
def test_dead_socket_wakes_with_all_it_held(dialect: Dialect) -> None:
    then = ["call", "session_expired", "close"]
    silence_fault = {"fault": "silence", "at": "committed", "lasts_s": 30, "then": then}
    silent = Interrupted(silence_fault, dialect=dialect)
    silent.say()
    assert silent.names[-1] == "input_audio_buffer.committed"
    silent.wait(30)
    late = silent.names[silent.names.index("input_audio_buffer.committed") + 1 :]
    assert dialect.wire_name("response.output_audio.delta") in late
    assert "conversation.item.input_audio_transcription.completed" not in late, "nothing is transcribed here"
    assert late[-4:] == [
        "response.done",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "error",
    ]
    assert silent.out[-1] == Cut("close", 1001, "session_expired")


def test_silent_talk_can_be_cut() -> None:
    silent = Interrupted({"fault": "silence", "at": "response.created"})
    silent.ask()
    silent.set({"fault": "cut"})
    silent.look()
    assert len(silent.cuts) == 1


def test_fault_of_another_path_strikes_nothing() -> None:
    cut = Interrupted({"fault": "cut", "at": "response.created", "match": "/voice-live"})
    cut.ask()
    assert cut.cuts == []
