"""One talk in two dialects: events of the Realtime API as GA has them, and as preview and Voice Live do. Pure.

A compatible endpoint speaks one dialect to its client, the upstream may speak the other; `to_azure` and `to_client`
carry events across. Both also serve where the two are the same: towards Azure what it does not know is left out,
towards the client what official clients throw without is put in. Translation is lenient: what it does not understand
passes.

Most of Azure's events differ by their name at most, the audio among them. `needs_reading` tells which do not; the rest
go through `renamed`, which reads no more than their head.
"""

import re
from collections.abc import Callable
from typing import Any

from strategies.base import Dialect
from token_broker.relay.dialects.broker_events import SESSION_EVENTS
from token_broker.relay.dialects.conversation_items import bare_part, completed_item, is_complete, item_for
from token_broker.relay.dialects.session_settings import (
    response_object,
    response_settings,
    session_object,
    session_settings,
)
from token_broker.relay.dialects.usage import with_whole_usage
from token_broker.relay.event_text import compact, parsed

__all__ = ["Event", "needs_reading", "renamed", "to_azure", "to_client"]

Event = dict[str, Any]
NewId = Callable[[], str]

_GA_NAMES = {
    "response.audio.delta": "response.output_audio.delta",
    "response.audio.done": "response.output_audio.done",
    "response.audio_transcript.delta": "response.output_audio_transcript.delta",
    "response.audio_transcript.done": "response.output_audio_transcript.done",
    "response.text.delta": "response.output_text.delta",
    "response.text.done": "response.output_text.done",
    "conversation.item.created": "conversation.item.added",
}
_NAMES: dict[Dialect, dict[str, str]] = {"ga": _GA_NAMES, "preview": {ga: name for name, ga in _GA_NAMES.items()}}

# What the one dialect's server sends and the other's client has no event for. `output_audio_buffer` is of WebRTC in
# GA, of avatars in Voice Live.
_UNKNOWN_TO_GA = frozenset(
    {
        "output_audio_buffer.cleared", "warning",
        "session.avatar.connecting", "session.avatar.switch_to_idle", "session.avatar.switch_to_speaking",
        "response.animation_blendshapes.delta", "response.animation_blendshapes.done",
        "response.animation_viseme.delta", "response.animation_viseme.done",
        "response.audio_timestamp.delta", "response.audio_timestamp.done",
        "response.audio_transcript.annotation.added", "response.invocation.delta", "response.video.delta",
        "response.file_search_call.searching", "response.file_search_call.in_progress",
        "response.file_search_call.completed", "response.web_search_call.searching",
        "response.web_search_call.in_progress", "response.web_search_call.completed",
    }
)  # fmt: skip
_UNKNOWN_TO_PREVIEW = frozenset(
    {
        "conversation.created", "conversation.item.done", "rate_limits.updated",
        "conversation.item.input_audio_transcription.segment",
        "input_audio_buffer.dtmf_event_received", "input_audio_buffer.timeout_triggered",
        "output_audio_buffer.started", "output_audio_buffer.stopped", "output_audio_buffer.cleared",
    }
)  # fmt: skip
_UNKNOWN: dict[Dialect, frozenset[str]] = {"ga": _UNKNOWN_TO_GA, "preview": _UNKNOWN_TO_PREVIEW}

_OUTPUT_ITEM_ADDED = "response.output_item.added"
_OUTPUT_ITEM_DONE = "response.output_item.done"
_TRANSCRIPTION_FAILED = "conversation.item.input_audio_transcription.failed"
_WITH_MORE_THAN_A_NAME = SESSION_EVENTS | {
    "conversation.item.created", "conversation.item.added", "conversation.item.done", "conversation.item.retrieved",
    "response.created", "response.done", _OUTPUT_ITEM_ADDED, _OUTPUT_ITEM_DONE,
    "response.content_part.added", "response.content_part.done", _TRANSCRIPTION_FAILED,
    "error",  # its own `error.event_id` is the client's
}  # fmt: skip

_HEAD = re.compile(
    r'\s*\{\s*("event_id"\s*:\s*"[^"\\]+"\s*,\s*)?"type"\s*:\s*"([^"\\]*)"(?=(\s*,\s*"event_id"\s*:\s*"[^"\\]+")?)'
)
# How nearly all frames begin, and what stands for that: audio, in Azure's own order of fields.
_AUDIO_DELTAS: dict[Dialect, str] = {"ga": "response.output_audio.delta", "preview": "response.audio.delta"}
_AUDIO_HEADS: dict[Dialect, str] = {
    dialect: f'{{"type":"{name}","event_id":"' for dialect, name in _AUDIO_DELTAS.items()
}
_EVENT_ID = re.compile(r'"event_id"\s*:\s*"[^"\\]+"')


def to_azure(event: Event, *, compat: Dialect, upstream: Dialect) -> list[Event]:
    """A client's event, cleared by `policy`, as the upstream has it: none where nothing is lost by that, one, or two.

    Settings which the upstream does not know are left out, so that they are not fatal; a `session.update` of which
    nothing remains still goes, since its sender waits for `session.updated`. An event that only the other dialect
    has goes as it is: Azure answers it with an `error` event, and the talk goes on.
    """
    kind = event.get("type")
    if kind == "session.update" and isinstance(session := event.get("session"), dict):
        return [{**event, "session": session_settings(session, compat=compat, upstream=upstream)}]
    if kind == "response.create":
        return _response_create(event, compat=compat, upstream=upstream)
    if kind == "conversation.item.create" and "item" in event:
        return [{**event, "item": item_for(event["item"], upstream, by_client=True)}]
    if kind == "output_audio_buffer.clear" and not compat == upstream == "preview":
        return []  # GA knows it over WebRTC alone, Voice Live for an avatar's output
    return [event]


def to_client(event: Event, *, compat: Dialect, upstream: Dialect, new_id: NewId) -> list[Event]:
    """Azure's event as the compatible endpoint's dialect has it, whole: none where it has no such event, one, or two.

    GA tells of an item twice, when it is made and when it is whole; preview once. `new_id` gives unique ids where
    Azure gave none; every event has an `event_id`, the first of two keeps its own.
    """
    translated = [event] if compat == upstream else _translated(event, compat=compat, upstream=upstream)
    return [_completed(each, compat, new_id) for each in translated]


def needs_reading(kind: str, *, compat: Dialect, upstream: Dialect) -> bool:
    """Whether `to_client` may change more of Azure's events of this type than their name and `event_id`."""
    return kind in _WITH_MORE_THAN_A_NAME or (compat != upstream and kind in _UNKNOWN[compat])


def renamed(text: str, *, compat: Dialect, upstream: Dialect, new_id: NewId) -> str:
    """An Azure event that need not be read, as text: its type in the client's dialect, an `event_id` if it has none.

    Its head alone is looked at, if that shows both. Text that is no event comes back as it is.
    """
    plain = _AUDIO_HEADS[upstream]
    if text.startswith(plain) and not text.startswith('"', len(plain)):
        return text if compat == upstream else _AUDIO_HEADS[compat] + text[len(plain) :]
    head = _HEAD.match(text)
    if head is None:
        return _renamed_by_reading(text, compat=compat, upstream=upstream, new_id=new_id)
    kind = head[2]
    name = kind if compat == upstream else _NAMES[compat].get(kind, kind)
    has_id = head[1] or head[3]
    if not has_id and (at := text.find('"event_id"', head.end())) >= 0:
        if _EVENT_ID.match(text, at) is None:
            return _renamed_by_reading(text, compat=compat, upstream=upstream, new_id=new_id)
        has_id = True
    if has_id:
        return text if name is kind else f"{text[: head.start(2)]}{name}{text[head.end(2) :]}"
    return f'{text[: head.start(2)]}{name}","event_id":"event_{new_id()}{text[head.end(2) :]}'


# --- towards Azure


def _response_create(event: Event, *, compat: Dialect, upstream: Dialect) -> list[Event]:
    """Beside `response` stands nothing that a client may say: Voice Live's `additional_instructions` do."""
    asked: Event = {name: event[name] for name in ("type", "event_id", "response") if name in event}
    response = asked.get("response")
    if not isinstance(response, dict):
        return [asked]
    asked["response"] = response_settings(response, compat=compat, upstream=upstream)
    appended = response.get("append_input_items")
    if upstream != "ga" or not isinstance(appended, list):
        return [asked]
    items = (item_for(item, upstream, by_client=True) for item in appended)
    return [*({"type": "conversation.item.create", "item": item} for item in items), asked]


# --- towards the client


def _translated(event: Event, *, compat: Dialect, upstream: Dialect) -> list[Event]:
    kind = event.get("type")
    if not isinstance(kind, str):
        return [event]
    if kind in _UNKNOWN[compat]:
        return []
    told = {**event, "type": _NAMES[compat].get(kind, kind)}
    if kind in SESSION_EVENTS and isinstance(session := event.get("session"), dict):
        told["session"] = session_object(session, compat=compat, upstream=upstream)
    if "item" in event:
        told["item"] = item_for(event["item"], compat)
    if isinstance(response := event.get("response"), dict):
        told["response"] = _response(response, compat=compat, upstream=upstream)
    if compat == "ga" and kind == "conversation.item.created" and is_complete(told.get("item")):
        return [told, {**_without_id(told), "type": "conversation.item.done"}]
    if compat == "ga" and kind == _OUTPUT_ITEM_DONE and "item" in told:
        return [{"type": "conversation.item.done", "item": told["item"]}, told]
    return [told]


def _response(response: Event, *, compat: Dialect, upstream: Dialect) -> Event:
    told = response_object(response, compat=compat, upstream=upstream)
    output = told.get("output")
    return {**told, "output": [item_for(item, compat) for item in output]} if isinstance(output, list) else told


def _completed(event: Event, compat: Dialect, new_id: NewId) -> Event:
    """An event with what official clients throw without, or drop it for (docs/azure.md §4.4)."""
    kind = event.get("type")
    event_id = event.get("event_id")
    if not isinstance(event_id, str) or not event_id:
        event_id = f"event_{new_id()}"
    whole: Event = {"type": kind, "event_id": event_id} | {**event, "event_id": event_id}
    if "type" not in event:
        del whole["type"]
    if "item" in event:
        whole["item"] = _item_of(kind, event["item"], new_id)
    if "part" in event:
        whole["part"] = bare_part(event["part"])
    if isinstance(response := event.get("response"), dict):
        whole["response"] = _whole_response(response, new_id)
    if kind == "session.created" or (kind == "session.updated" and isinstance(event.get("session"), dict)):
        whole["session"] = _whole_session(event.get("session"), kind, compat, new_id)
    if kind == _TRANSCRIPTION_FAILED and isinstance(error := event.get("error"), dict):
        whole["error"] = {name: value for name, value in error.items() if value is not None}
    return whole


def _item_of(kind: Any, item: Any, new_id: NewId) -> Any:
    if kind == _OUTPUT_ITEM_ADDED:
        return completed_item(item, new_id=new_id, role="assistant", status="in_progress")
    if kind == _OUTPUT_ITEM_DONE:
        return completed_item(item, new_id=new_id, role="assistant", status="completed")
    return completed_item(item, new_id=new_id)


def _whole_response(response: Event, new_id: NewId) -> Event:
    whole = with_whole_usage(response)
    output = whole.get("output")
    if isinstance(output, list):
        whole["output"] = [completed_item(item, new_id=new_id, role="assistant") for item in output]
    return whole


def _whole_session(session: Any, kind: str, compat: Dialect, new_id: NewId) -> Event:
    """`@azure/ai-voicelive` delivers nothing at all before it has the id in `session.created`."""
    whole: Event = dict(session) if isinstance(session, dict) else {}
    if kind == "session.created" and not (isinstance(whole.get("id"), str) and whole["id"]):
        whole["id"] = f"sess_{new_id()}"
    return {"type": "realtime", "object": "realtime.session", **whole} if compat == "ga" else whole


def _without_id(event: Event) -> Event:
    return {name: value for name, value in event.items() if name != "event_id"}


def _renamed_by_reading(text: str, *, compat: Dialect, upstream: Dialect, new_id: NewId) -> str:
    try:
        event = parsed(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(event, dict):
        return text
    kind = event.get("type")
    if compat != upstream and isinstance(kind, str):
        event["type"] = _NAMES[compat].get(kind, kind)
    return compact(_completed(event, compat, new_id))
