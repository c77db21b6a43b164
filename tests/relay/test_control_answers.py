"""What is concluded of answers whose beginning and end the control socket does not tell."""

import math
from typing import Any

from token_broker.relay.answers.actions import Action, Run, Send, Tool
from token_broker.relay.answers.sequencer import ACTIVE_ALREADY, AnswerSequencer
from token_broker.relay.media.control_answers import ControlAnswers
from token_broker.relay.resume.session_facts import SessionFacts

TOOL = Tool("order", "http")


class Line:
    """A control socket with a sequencer behind it, and a clock. `sent` is what Azure was sent, by type and key."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.concluded = ControlAnswers()
        self.sequencer = AnswerSequencer(lambda: {"order": TOOL}, facts=SessionFacts(session_id="sess_1"))
        self.sent: list[dict[str, Any]] = []
        self.runs: list[str] = []
        self.take(self.sequencer.begin("preview", self.now_s))

    @property
    def creates(self) -> int:
        return sum(event["type"] == "response.create" for event in self.sent)

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                event = dict(action.event)
                self.sent.append(event)
                self.concluded.sent(event, self.now_s)
            elif isinstance(action, Run):
                self.runs.append(action.call_id)

    def hear(self, event: dict[str, Any]) -> None:
        for each in self.concluded.azure_sent(event, self.now_s):
            self.take(self.sequencer.azure_sent(each, self.now_s))

    def call(self, call_id: str, *, response_id: str = "resp_1", name: str | None = "order") -> None:
        stated = {} if name is None else {"name": name}
        about = {"response_id": response_id, "item_id": f"item_{call_id}", "call_id": call_id, "arguments": "{}"}
        self.hear({"type": "response.function_call_arguments.done", **about, **stated})

    def output(self, call_id: str) -> None:
        self.take(self.sequencer.output_ready(call_id, "done", self.now_s))

    def refuse(self) -> None:
        """Azure refuses the last question, since an answer is active."""
        event_id = [event for event in self.sent if event["type"] == "response.create"][-1]["event_id"]
        self.hear({"type": "error", "error": {"code": ACTIVE_ALREADY, "event_id": event_id}})

    def user_says(self) -> None:
        self.hear({"type": "conversation.item.input_audio_transcription.completed", "item_id": "item_u"})

    def wait(self, for_s: float) -> None:
        until_s = self.now_s + for_s
        while (due_s := min(self.concluded.due_s, self.sequencer.due_s(self.now_s))) <= until_s:
            self.now_s = max(self.now_s, due_s)
            for each in self.concluded.due(self.now_s):
                self.take(self.sequencer.azure_sent(each, self.now_s))
            self.take(self.sequencer.tick(self.now_s))
        self.now_s = until_s


def test_one_question_for_all_calls_of_an_answer() -> None:
    line = Line()
    line.call("a")
    line.output("a")
    line.call("b")
    assert line.creates == 0  # the answer may go on
    line.wait(0.2)
    line.output("b")
    line.wait(10)
    assert line.runs == ["a", "b"]
    assert line.creates == 1
    assert line.concluded.due_s == math.inf


def test_refused_question_is_asked_again_until_taken() -> None:
    line = Line()
    line.call("a")
    line.output("a")
    for number in range(1, 5):
        line.wait(5 if number > 1 else 0.4)
        assert line.creates == number
        line.refuse()
    line.wait(60)
    assert line.creates == 5


def test_words_after_the_outputs_answer_them() -> None:
    """The active answer goes on from the outputs: another would answer them twice."""
    line = Line()
    line.call("a")
    line.output("a")
    line.wait(0.4)
    line.user_says()
    line.refuse()
    line.wait(60)
    assert line.creates == 1


def test_words_before_the_outputs_do_not() -> None:
    line = Line()
    line.call("a")
    line.user_says()
    line.wait(0.4)
    line.output("a")
    line.refuse()
    line.wait(60)
    assert line.creates == 2


def test_late_call_of_an_answer_has_a_question_of_its_own() -> None:
    line = Line()
    line.call("a")
    line.output("a")
    line.wait(0.4)
    line.call("b")  # the channels are independent
    line.output("b")
    line.wait(10)
    assert line.runs == ["a", "b"]
    assert line.creates == 2


def test_end_that_is_told_counts() -> None:
    line = Line()
    line.call("a")
    line.output("a")
    line.hear({"type": "response.done", "response": {"id": "resp_1", "status": "completed", "output": []}})
    assert line.creates == 1
    line.wait(3)
    line.call("b", response_id="resp_2")
    line.output("b")
    line.wait(3)
    assert line.creates == 1  # the question's own answer is under way, and its end will be told


def test_cancelled_answer_brings_no_question() -> None:
    line = Line()
    line.call("a")
    line.hear({"type": "response.done", "response": {"id": "resp_1", "status": "cancelled", "output": []}})
    line.output("a")
    line.wait(10)
    assert line.creates == 0


def test_whole_item_and_arguments_are_one_call() -> None:
    """The name may come with the item alone, and the item before or after the arguments."""
    line = Line()
    item = {"id": "item_a", "type": "function_call", "call_id": "a", "name": "order", "arguments": "{}"}
    line.hear({"type": "response.output_item.added", "response_id": "resp_1", "item": {**item, "arguments": ""}})
    line.call("a", name=None)
    line.hear({"type": "response.output_item.done", "response_id": "resp_1", "item": {**item, "status": "completed"}})
    line.call("a")
    assert line.runs == ["a"]
