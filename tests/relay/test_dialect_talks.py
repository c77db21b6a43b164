"""Whole talks across dialects, compared with the simulator's own two; and malformed events."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.base import Dialect
from tests.relay.support.official_models import ga_server_event, preview_server_event
from tests.relay.support.translated_talk import TranslatedTalk, counted, meaning, without_live_extras
from tests.relay.test_dialects import PCM, TO_GA, TO_PREVIEW, TRANSLATED, message, other
from tests.simulator.support import silence, speech
from token_broker.relay.dialects.translation import renamed, to_azure, to_client

Event = dict[str, Any]


def script(talk: TranslatedTalk) -> TranslatedTalk:
    """Spoken and typed turns, an interruption, a text response and an error, in the client's dialect."""
    vad = {"type": "server_vad", "silence_duration_ms": 500}
    if talk.client == "ga":
        audio = {"input": {"format": PCM, "turn_detection": vad, "transcription": {"model": "whisper-1"}}}
        talk.send("session.update", session={"type": "realtime", "output_modalities": ["audio"], "audio": audio})
        wish: Event = {"output_modalities": ["text"], "metadata": {"topic": "x"}, "max_output_tokens": 300}
        history = message("assistant", {"type": "output_text", "text": "Before."}, status="completed")
    else:
        session = {"modalities": ["text", "audio"], "input_audio_format": "pcm16", "turn_detection": vad}
        talk.send("session.update", session={**session, "input_audio_transcription": {"model": "whisper-1"}})
        wish = {"modalities": ["text"], "metadata": {"topic": "x"}, "max_output_tokens": 300}
        history = message("assistant", {"type": "text", "text": "Before."}, status="completed")
    talk.send("conversation.item.create", item=history)
    talk.send("input_audio_buffer.append", audio=base64.b64encode(speech(0.4) + silence(1)).decode())
    talk.wait(20)
    talk.send("conversation.item.create", item=message("user", {"type": "input_text", "text": "Hello"}))
    talk.send("response.create")
    talk.wait(0.05)
    talk.send("response.cancel")
    spoken = talk.last("response.done")["response"]["output"][0]["id"]
    talk.send("conversation.item.truncate", item_id=spoken, content_index=0, audio_end_ms=1)
    talk.send("conversation.item.retrieve", item_id=spoken)
    talk.send("response.create", response=wish)
    talk.wait(20)
    talk.send("response.create", response={**wish, "conversation": "none"})
    talk.wait(20)
    talk.send("conversation.item.delete", item_id=spoken)
    talk.send("response.cancel", event_id="mine")
    talk.send("input_audio_buffer.clear")
    return talk


@pytest.mark.parametrize("client", ["ga", "preview"])
def test_translated_talk_keeps_its_meaning(client: Dialect) -> None:
    plain, crossed = script(TranslatedTalk(client, client)), script(TranslatedTalk(client, other(client)))
    assert meaning(crossed.events) == meaning(plain.events)
    errors = [each["error"] for each in crossed.sent if each["type"] == "error"]
    assert [(error["code"], error["event_id"]) for error in errors] == [("response_cancel_not_active", "mine")]
    for each in crossed.events:
        (ga_server_event if client == "ga" else preview_server_event)(without_live_extras(each))


def test_talk_covers_nearly_every_event() -> None:
    kinds = {each["type"] for each in script(TranslatedTalk("ga", "ga")).events}
    untold = {"conversation.item.input_audio_transcription.failed", "response.function_call_arguments.delta"}
    assert {ga["type"] for ga, _ in TRANSLATED} - kinds == untold | {"response.function_call_arguments.done"}


# --- malformed events

ODD = ["null", "true", "0", "-1", "2.5", '""', '"odd"', "[]", "{}", "[null]", "[[]]", '{"type":null}', '{"type":[]}']
SEEN: list[Event] = [
    *(event for table in (TO_GA, TO_PREVIEW) for event, _ in table),
    *(event for pair in TRANSLATED for event in pair),
]
dialects = st.sampled_from(["ga", "preview"])


@st.composite
def spoiled(draw: st.DrawFn) -> Event:
    """A real event with a wrong or missing value somewhere."""
    event: Event = json.loads(json.dumps(draw(st.sampled_from(SEEN))))
    for _ in range(draw(st.integers(1, 3))):
        at: Any = event
        while True:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at)))) if at else None
            if key is None:
                break
            if isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 3)):
                at = at[key]
                continue
            if draw(st.booleans()):
                at[key] = json.loads(draw(st.sampled_from(ODD)))
            else:
                del at[key]
            break
    return event


@settings(max_examples=300)
@given(spoiled(), dialects, dialects)
def test_translation_never_mutates_its_input(event: Event, client: Dialect, upstream: Dialect) -> None:
    before = json.dumps(event)
    for told in to_azure(event, client=client, upstream=upstream):
        json.dumps(told)
    for told in to_client(event, client=client, upstream=upstream, new_id=counted()):
        assert isinstance(told["event_id"], str)
        assert told["event_id"]
        json.dumps(told)
    assert json.dumps(event) == before


@given(st.text(max_size=60) | spoiled().map(json.dumps), dialects, dialects)
def test_renaming_accepts_any_text(text: str, client: Dialect, upstream: Dialect) -> None:
    assert isinstance(renamed(text, client=client, upstream=upstream, new_id=counted()), str)
