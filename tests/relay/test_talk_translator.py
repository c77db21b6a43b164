"""What a client of GA is told over Voice Live beyond single events: how long speech was, and ends once."""

from typing import Any

import pytest

from strategies.base import Dialect
from tests.relay.support.official_models import ga_server_event
from tests.relay.support.translated_talk import counted
from tests.relay.test_dialects import PREVIEW_SAID, USER_SPOKE, event
from token_broker.relay.dialects.talk_translator import TalkTranslator

Event = dict[str, Any]

TOKENS = {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}


def translator(client: Dialect = "ga") -> TalkTranslator:
    return TalkTranslator(client, new_id=counted())


def transcribed(item_id: str = "item_0", **fields: Any) -> Event:
    kind = "conversation.item.input_audio_transcription.completed"
    return event(kind, item_id=item_id, content_index=0, transcript="Hello.", **fields)


def usage_after(*events: Event, **fields: Any) -> Any:
    talk = translator()
    for each in events:
        assert talk.reads(each["type"], "preview")
        talk.to_client(each, "preview")
    (told,) = talk.to_client(transcribed(**fields), "preview")
    ga_server_event(told)
    return told["usage"]


STARTED = event("input_audio_buffer.speech_started", item_id="item_0", audio_start_ms=1_200)
STOPPED = event("input_audio_buffer.speech_stopped", item_id="item_0", audio_end_ms=3_950)
RESUMED = event("input_audio_buffer.speech_started", item_id="item_0", audio_start_ms=2_000)


@pytest.mark.parametrize(
    ("before", "fields", "usage"),
    [
        ([STARTED, STOPPED], {}, {"type": "duration", "seconds": 2.75}),
        ([STARTED, RESUMED, STOPPED], {"usage": None}, {"type": "duration", "seconds": 2.75}),
        # of speech that the client committed, and of a transcript that comes before the end, the length is not known
        ([], {}, {"type": "duration", "seconds": 0}),
        ([STARTED], {}, {"type": "duration", "seconds": 0}),
        ([STARTED, STOPPED], {"item_id": "item_9"}, {"type": "duration", "seconds": 0}),
        ([STARTED, STOPPED], {"usage": TOKENS}, {"type": "tokens", **TOKENS}),
        ([STARTED, STOPPED], {"usage": {"type": "duration", "seconds": 3}}, {"type": "duration", "seconds": 3}),
    ],
)
def test_transcription_has_usage(before: list[Event], fields: Event, usage: Event) -> None:
    assert usage_after(*before, **fields) == usage


def test_voice_live_client_gets_no_usage() -> None:
    assert translator("preview").to_client(transcribed(), "preview") == [transcribed()]


def kinds(talk: TalkTranslator, *events: Event) -> list[str]:
    return [told["type"] for each in events for told in talk.to_client(each, "preview")]


ADDED, DONE = "conversation.item.added", "conversation.item.done"


def test_end_of_users_audio_is_told_once() -> None:
    created = event("conversation.item.created", item=USER_SPOKE)
    own = event("conversation.item.done", previous_item_id=None, item=USER_SPOKE)
    assert kinds(translator(), created, own, own) == [ADDED, DONE]
    under_way = event("conversation.item.created", item=USER_SPOKE | {"status": "in_progress"})
    assert kinds(translator(), under_way, own, own) == [ADDED, DONE]


def test_item_outside_conversation_has_no_end() -> None:
    ended = event("response.output_item.done", response_id="resp_1", output_index=0, item=PREVIEW_SAID)
    assert kinds(translator(), ended) == ["response.output_item.done"]
    created = event("conversation.item.created", item=PREVIEW_SAID | {"status": "in_progress"})
    assert kinds(translator(), created, ended) == [ADDED, DONE, "response.output_item.done"]


def test_voice_live_client_hears_no_ga_name() -> None:
    own = event("conversation.item.done", previous_item_id=None, item=USER_SPOKE)
    talk = translator("preview")
    assert talk.reads("conversation.item.done", "preview")
    assert talk.to_client(own, "preview") == talk.to_client(own, "ga") == []


def test_gas_own_events_are_not_counted() -> None:
    own = event("conversation.item.done", previous_item_id=None, item=USER_SPOKE)
    assert translator().to_client(own, "ga") == [own]


NULLS = {"language": None, "prompt": None, "custom_speech": None, "phrase_list": None}


@pytest.mark.parametrize(
    ("session", "told"),
    [
        # as recorded: pipecat's parser throws on `keywords: null`
        (
            {"input_audio_transcription": {"model": "whisper-1", **NULLS}},
            {"audio": {"input": {"transcription": {"model": "whisper-1"}}}},
        ),
        (
            {"turn_detection": {"type": "server_vad", "threshold": 0.5, "idle_timeout_ms": None}},
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 0.5}}}},
        ),
        # null alone switches off in both
        (
            {"turn_detection": None, "input_audio_noise_reduction": None, "output_audio_format": None},
            {"audio": {"input": {"turn_detection": None, "noise_reduction": None}}},
        ),
    ],
)
def test_null_has_no_counterpart(session: Event, told: Event) -> None:
    (updated,) = translator().to_client(event("session.updated", session=session), "preview")
    assert updated["session"] == {"type": "realtime", "object": "realtime.session", **told}
    ga_server_event(updated)
