"""The user's words wait for their verdict: what waits, in which order, and what follows. No clock, no socket."""

import json
from typing import Any

import pytest

from token_broker.relay.guardrail.client_words import has_words, with_words, words_of
from token_broker.relay.guardrail.held import AnswerWish, held_changes, held_session
from token_broker.relay.guardrail.word_checks import (
    AskHook,
    DropEvent,
    DropTurn,
    ForwardEvent,
    GuardAction,
    KeepTurn,
    SendEvent,
    WantAnswer,
    WordChecks,
)
from token_broker.tools.verdict import Verdict

Event = dict[str, Any]


ALLOW = Verdict("allow")
REPLACE = Verdict("replace", text="My card is [removed].")
REFUSE = Verdict("refuse", say="Not that.")
COMMITTED = {"type": "input_audio_buffer.committed", "item_id": "i"}
FAILED = {"type": "conversation.item.input_audio_transcription.failed", "item_id": "i"}
CREATE = {"type": "response.create", "event_id": "mine"}


def spoken(text: object, item_id: str = "i") -> Event:
    kind = "conversation.item.input_audio_transcription.completed"
    return {"type": kind, "item_id": item_id, "transcript": text}


def typed(*parts: Event, role: str = "user") -> Event:
    parts = parts or ({"type": "input_text", "text": "My card is 4111."},)
    return {"type": "conversation.item.create", "item": {"type": "message", "role": role, "content": list(parts)}}


class Talk:
    """Words and verdicts at times in seconds; `left` are the actions since the last look, in a readable form."""

    def __init__(self, *, fails_open: bool = True, by_itself: bool = True) -> None:
        self.checks = WordChecks()
        self.checks.fails_open, self.checks.by_itself = fails_open, by_itself
        self.checks.begin(0.0)
        self.kept: list[Event] = []
        self._actions: list[GuardAction] = []

    def azure(self, event: Event, at_s: float = 0.0) -> bool:
        keeps, actions = self.checks.azure_sent(event, at_s)
        self._actions += actions
        return keeps

    def client(self, event: Event, at_s: float = 0.0) -> bool:
        passes, actions = self.checks.client_sent(event["type"], event, at_s, chars=len(json.dumps(event)))
        self._actions += actions
        return passes

    def judge(self, verdict: Verdict, number: int = 1, at_s: float = 0.1) -> None:
        self._actions += self.checks.judged(number, verdict, at_s)

    def tick(self, at_s: float) -> None:
        self._actions += self.checks.tick(at_s)

    def left(self) -> list[str]:
        shown = [_shown(action) for action in self._actions]
        self._actions.clear()
        return shown


def _shown(action: GuardAction) -> str:
    match action:
        case AskHook(text=text, source=source):
            return f"ask {source}: {text}"
        case SendEvent(event=event):
            content = event.get("item", {}).get("content", [{}])
            return f"{event['type']} {event.get('item_id') or content[0].get('text')}"
        case ForwardEvent(event=event):
            return f"forward {event['type']} {words_of(event).text}".strip()
        case WantAnswer(say=say):
            if say is None:
                return "answer"
            return f"say {say.split(chr(34))[1]}" if '"' in say else "say no"
        case KeepTurn():
            return "keep"
        case DropTurn(item_id=item_id):
            return f"drop {item_id}"
        case DropEvent(code=code):
            return f"refusal {code}"


def heard(text: object = "My card is 4111.", **options: bool) -> Talk:
    talk = Talk(**options)
    assert talk.azure(COMMITTED)
    assert not talk.azure(spoken(text), 0.5), "the turn waits for the verdict"
    return talk


@pytest.mark.parametrize(
    ("verdict", "at_once", "then"),
    [
        (ALLOW, ["keep", "answer"], []),
        (
            REPLACE,
            ["drop i", "conversation.item.delete i"],
            ["conversation.item.create My card is [removed].", "answer"],
        ),
        (REFUSE, ["drop i", "conversation.item.delete i"], ["say Not that."]),
        (Verdict("replace", text="  "), ["drop i", "conversation.item.delete i"], ["say no"]),
        (Verdict("refuse"), ["drop i", "conversation.item.delete i"], ["say no"]),
    ],
)
def test_verdict_on_speech(verdict: Verdict, at_once: list[str], then: list[str]) -> None:
    talk = heard()
    assert talk.left() == ["ask speech: My card is 4111."]
    talk.judge(verdict)
    assert talk.left() == at_once
    assert talk.checks.is_checking == bool(then), "the item is not gone yet"
    talk.azure({"type": "conversation.item.deleted", "item_id": "i"}, 0.2)
    assert talk.left() == then
    assert not talk.checks.is_checking


@pytest.mark.parametrize("fails_open", [True, False])
@pytest.mark.parametrize("transcript", ["failed", "empty", "none", "late verdict", "no text"])
def test_missing_words_are_the_hooks_failure(transcript: str, *, fails_open: bool) -> None:
    talk = Talk(fails_open=fails_open)
    talk.azure(COMMITTED)
    match transcript:
        case "failed":
            talk.azure(FAILED)
        case "empty":
            talk.azure(spoken("  "))
        case "no text":
            talk.azure(spoken(None))
        case "none":
            talk.tick(2.999)
            assert talk.left() == []
            assert talk.checks.due_s == 3.0
            talk.tick(3.0)
        case _:
            talk.azure(spoken("Hello."), 1.0)
            talk.left()
            assert talk.checks.due_s == 1.0 + 0.3 + 2.0
            talk.tick(talk.checks.due_s)
    done = talk.left()
    if fails_open:
        assert done[-1] == "answer"
    else:
        assert done == ["drop i", "conversation.item.delete i"]
        talk.azure({"type": "conversation.item.deleted", "item_id": "i"})
        assert talk.left() == ["say no"]
    talk.judge(REFUSE)
    assert talk.left() == [], "a late verdict says nothing"


def test_two_utterances_get_one_answer() -> None:
    talk = heard("One.")
    talk.azure({"type": "input_audio_buffer.speech_started", "item_id": "j"}, 0.6)
    talk.azure({**COMMITTED, "item_id": "j"}, 1.0)
    talk.azure(spoken("Two.", "j"), 1.1)
    talk.left()
    talk.judge(ALLOW, 1)
    assert talk.left() == ["keep"]
    talk.judge(ALLOW, 2)
    assert talk.left() == ["keep", "answer"]


def test_transcript_before_the_commit() -> None:
    talk = Talk()
    assert not talk.azure(spoken("Early."))
    talk.azure(COMMITTED)
    assert talk.left() == ["ask speech: Early."]
    talk.judge(ALLOW)
    assert talk.left() == ["keep", "answer"]
    assert talk.azure(spoken("Early.")), "nothing waits for it any more"


@pytest.mark.parametrize(
    ("verdict", "then"),
    [
        (ALLOW, ["forward conversation.item.create My card is 4111.", "forward response.create"]),
        (REPLACE, ["forward conversation.item.create My card is [removed].", "forward response.create"]),
        (REFUSE, ["say Not that."]),
    ],
)
def test_typed_words_wait_with_their_question(verdict: Verdict, then: list[str]) -> None:
    talk = Talk()
    assert not talk.client(typed())
    assert not talk.client(CREATE)
    assert talk.left() == ["ask typed: My card is 4111."]
    talk.judge(verdict)
    assert talk.left() == then
    assert talk.client(CREATE), "nothing is left"


def test_refusal_of_typed_words_awaits_the_question() -> None:
    talk = Talk()
    talk.client(typed())
    talk.judge(REFUSE)
    assert talk.left() == ["ask typed: My card is 4111."]
    outside = {"type": "response.create", "response": {"conversation": "none"}}
    assert talk.client(outside)
    assert not talk.client(CREATE)
    assert talk.left() == ["say Not that."]
    assert talk.client(CREATE)


@pytest.mark.parametrize("fails_open", [True, False])
def test_unheard_sound_is_the_hooks_failure(*, fails_open: bool) -> None:
    talk = Talk(fails_open=fails_open)
    sound = {"type": "input_audio", "audio": "AAAA", "transcript": "Nothing bad."}
    assert not talk.client(typed({"type": "input_text", "text": "Listen:"}, sound))
    ask = "ask typed: Listen:"
    assert talk.left() == ([ask] if fails_open else ["refusal event_refused"]), "words beside it do not get past"


@pytest.mark.parametrize("fails_open", [True, False])
def test_image_is_the_hooks_failure(*, fails_open: bool) -> None:
    talk = Talk(fails_open=fails_open)
    image = {"type": "input_image", "image_url": "data:,x"}
    assert not talk.client(typed(image))
    assert talk.left() == (["forward conversation.item.create"] if fails_open else ["refusal event_refused"])
    assert talk.client(CREATE) is fails_open
    assert talk.left() == ([] if fails_open else ["say no"]), "silence is no answer"


def owed(kind: str, **fields: Any) -> Event:
    return {"type": "conversation.item.create", "item": {"type": kind, **fields}}


@pytest.mark.parametrize(
    ("verdict", "output", "reason"),
    [
        (ALLOW, "4111", "Please: 4111."),
        (REPLACE, "My card is [removed].", "My card is [removed]."),
        (REFUSE, "The output was withheld by a check of its words. Do not guess what it was.", ""),
    ],
)
def test_outputs_and_reasons_are_checked(verdict: Verdict, output: str, reason: str) -> None:
    talk = Talk()
    assert not talk.client(owed("function_call_output", call_id="c", output="4111"))
    assert not talk.client(owed("mcp_approval_response", approval_request_id="a", approve=True, reason="Please: 4111."))
    assert not talk.client(CREATE), "what is said after them waits too"
    assert talk.left() == ["ask typed: 4111", "ask typed: Please: 4111."]
    talk.judge(verdict, 2)
    assert talk.left() == []
    talk.judge(verdict, 1)
    create = "forward conversation.item.create"
    assert talk.left() == [f"{create} {output}", f"{create} {reason}".strip(), "forward response.create"]
    assert talk.client(owed("mcp_approval_response", approval_request_id="a", approve=True)), "it has no words"


def test_order_is_kept_behind_held_words() -> None:
    talk = Talk()
    assert not talk.client(typed())
    assert not talk.client({"type": "conversation.item.delete", "item_id": "old"})
    assert not talk.client(typed({"type": "input_image", "image_url": "data:,"}))
    assert talk.client({"type": "response.cancel"})
    assert talk.client({"type": "input_audio_buffer.append", "audio": ""})
    talk.left()
    talk.judge(ALLOW)
    assert [each.split()[1] for each in talk.left()] == [
        "conversation.item.create", "conversation.item.delete", "conversation.item.create",
    ]  # fmt: skip


def test_question_waits_for_speech() -> None:
    talk = Talk(by_itself=False)
    talk.client({"type": "input_audio_buffer.commit"})
    assert talk.checks.is_checking, "Azure has not told of it"
    assert not talk.client(CREATE)
    talk.azure(COMMITTED)
    talk.azure(spoken("Hello."))
    assert talk.left() == ["ask speech: Hello."]
    talk.judge(ALLOW)
    assert talk.left() == ["keep", "forward response.create"]


def test_empty_commit_holds_nothing() -> None:
    talk = Talk(by_itself=False)
    talk.client({"type": "input_audio_buffer.commit"})
    talk.client(CREATE)
    talk.azure({"type": "error", "error": {"code": "input_audio_buffer_commit_empty"}})
    assert talk.left() == ["forward response.create"]


def test_own_input_of_a_question_is_checked() -> None:
    talk = Talk()
    item = typed()["item"]
    asked = {"type": "response.create", "response": {"input": [item, {"type": "item_reference", "id": "x"}, item]}}
    assert not talk.client(asked)
    assert talk.left() == ["ask typed: My card is 4111.\nMy card is 4111."]
    talk.judge(REPLACE)
    assert talk.left() == ["forward response.create My card is [removed]."]
    assert not talk.client(asked)
    talk.left()
    talk.judge(Verdict("refuse"), 2)
    assert talk.left() == ["say no"]


@pytest.mark.parametrize("kind", ["input_text.delta", "input_text.done", "input_audio.turn.end"])
def test_ways_past_the_check_are_closed(kind: str) -> None:
    talk = Talk()
    assert not talk.client({"type": kind, "delta": "Bad."})
    assert talk.left() == ["refusal event_refused"]


def test_held_words_are_bounded() -> None:
    talk = Talk()
    for _ in range(65):
        talk.client(typed())
    assert talk.left()[-1] == "refusal guardrail_busy"


def test_check_outlives_its_session() -> None:
    talk = Talk()
    talk.azure(COMMITTED)
    talk.client(typed())
    talk.left()
    talk.checks.cut()
    talk.judge(ALLOW, 1)
    assert talk.left() == [], "no session is there to take it"
    assert talk.checks.begin(10.0) == [ForwardEvent(typed())]
    assert talk.checks.due_s == 15.0, "the words are told to the next session first"
    talk.azure(spoken("Hello."), 11.0)
    talk.left()
    talk.checks.cut()
    talk.judge(REFUSE, 2)
    assert talk.left() == ["drop i"], "the next session is not told of it"
    assert [_shown(each) for each in talk.checks.begin(12.0)] == ["say Not that."]


def test_refused_removal_gets_no_answer() -> None:
    talk = heard()
    talk.judge(REFUSE)
    talk.left()
    talk.azure({"type": "error", "error": {"event_id": "broker_guard_delete_2"}}, 0.3)
    assert talk.left()[0] == "refusal answer_failed"
    assert not talk.checks.is_checking


def test_clients_own_deletion_ends_the_check() -> None:
    talk = heard()
    assert talk.client({"type": "conversation.item.delete", "item_id": "i"})
    assert not talk.checks.is_checking
    talk.left()
    talk.judge(ALLOW)
    assert talk.left() == []


def test_agent_without_guardrail_lets_all_go() -> None:
    talk = heard()
    talk.client(typed())
    talk.left()
    shown = [_shown(each) for each in talk.checks.release()]
    assert shown == ["keep", "forward conversation.item.create My card is 4111.", "answer"]


@pytest.mark.parametrize(
    ("verdict", "released"),
    [(REFUSE, ["say Not that."]), (REPLACE, ["conversation.item.create My card is [removed].", "answer"])],
)
def test_words_that_go_are_no_turn(verdict: Verdict, released: list[str]) -> None:
    talk = heard()
    talk.judge(verdict)
    assert talk.left()[1:] == ["drop i", "conversation.item.delete i"]
    assert [_shown(each) for each in talk.checks.release()] == released
    talk = heard()
    talk.judge(verdict)
    talk.left()
    assert talk.client({"type": "conversation.item.delete", "item_id": "i"})
    assert "keep" not in talk.left()
    talk = heard()
    talk.checks.cut()
    talk.judge(verdict)
    assert talk.checks.release() == []
    assert [_shown(each) for each in talk.checks.begin(1.0)] == released


# --- the words, and the sessions


def test_words_of_parts() -> None:
    image = {"type": "input_image", "image_url": "data:,x"}
    said = typed(image, {"type": "input_text", "text": "One."}, {"type": "input_text", "text": "Two."})
    assert words_of(said) == ("One.\nTwo.", False)
    assert with_words(said, "Three.")["item"]["content"] == [image, {"type": "input_text", "text": "Three."}]
    assert has_words(typed(image)), "which nobody knows"
    assert words_of(typed({"type": "text", "text": "As the agent."}, role="assistant")) == ("As the agent.", True)
    assert with_words(typed({"type": "input_audio", "audio": "AA"}), "Hi.")["item"]["content"] == [
        {"type": "input_text", "text": "Hi."}
    ]
    assert not has_words({"type": "response.create"})


def test_session_never_answers_by_itself() -> None:
    never = {"type": "server_vad", "create_response": False}
    assert held_session({"type": "realtime"}, "ga")["audio"]["input"]["turn_detection"] == never
    assert held_session({}, "preview")["turn_detection"] == never
    detection = {"type": "semantic_vad", "eagerness": "low", "create_response": True}
    session: Event = {"audio": {"input": {"turn_detection": detection, "format": 1}}}
    assert held_session(session, "ga")["audio"]["input"] == {
        "turn_detection": {**detection, "create_response": False}, "format": 1,
    }  # fmt: skip
    assert held_session({"turn_detection": None}, "preview") == {"turn_detection": None}


def test_client_sees_its_own_wish() -> None:
    wish = AnswerWish()
    held = {"type": "session.updated", "session": {"turn_detection": {"type": "server_vad", "create_response": False}}}
    assert wish.shown(held)["session"]["turn_detection"]["create_response"] is True
    asked = {"turn_detection": {"type": "server_vad", "create_response": True}}
    wish.note(asked)
    assert held_changes(asked)["turn_detection"]["create_response"] is False
    assert wish.by_itself
    assert held_changes({"voice": "x", "turn_detection": None}) == {"voice": "x", "turn_detection": None}
    wish.note({"audio": {"input": {"turn_detection": {"type": "server_vad", "create_response": False}}}})
    assert not wish.by_itself
    assert wish.shown(held) is held
    wish.note({"turn_detection": None})
    wish.begin(None)
    assert not wish.by_itself, "what the client has set holds"
