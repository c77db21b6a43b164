"""Translation of Realtime events between two dialects: GA, and preview, which is Voice Live's too. Pure.

A compatible endpoint speaks one dialect to its client, and the upstream may speak the other. `to_azure` and `to_client`
translate events. Both also serve where the dialects are the same: events to Azure lose what Azure does not know, and
events to the client gain the fields without which official clients throw. What is not understood passes unchanged.

Most of Azure's events, audio among them, differ by their name at most. `needs_reading` says which differ by more; the
others go through `renamed`, which reads only their head.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from strategies.session_model.agent_settings import Dialect
from token_broker.relay.dialects.broker_events import is_own
from token_broker.relay.dialects.conversation_items import (
    completed_item,
    completed_part,
    history_as_text,
    is_complete,
    item_for,
    items_for,
)
from token_broker.relay.dialects.session_settings import (
    param_for_client,
    response_object,
    response_settings,
    session_object,
    session_settings,
)
from token_broker.relay.event_text import SESSION_EVENTS, compact, parsed

__all__ = ["Event", "completed", "needs_reading", "renamed", "to_azure", "to_client"]

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

# Events that a server of the other dialect sends, and a client of this one does not know. `output_audio_buffer.*`
# belongs to WebRTC in GA, and to avatars in Voice Live.
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
_OUTPUT_ITEM_STATUS = {_OUTPUT_ITEM_ADDED: "in_progress", _OUTPUT_ITEM_DONE: "completed"}
_TRANSCRIPTION_FAILED = "conversation.item.input_audio_transcription.failed"
_CHANGED_INSIDE = SESSION_EVENTS | {
    "conversation.item.created", "conversation.item.added", "conversation.item.done", "conversation.item.retrieved",
    "response.created", "response.done", _OUTPUT_ITEM_ADDED, _OUTPUT_ITEM_DONE,
    "response.content_part.added", "response.content_part.done", _TRANSCRIPTION_FAILED,
    "error",  # its own `error.event_id` is the client's
}  # fmt: skip

_HEAD = re.compile(
    r'\s*\{\s*("event_id"\s*:\s*"[^"\\]+"\s*,\s*)?"type"\s*:\s*"([^"\\]*)"(?=(\s*,\s*"event_id"\s*:\s*"[^"\\]+")?)'
)
# How nearly all frames begin: audio, in the order of fields that Azure writes. For 100 ms of speech, replacing this
# prefix takes 3 µs, matching the regular expression 5 µs, parsing and serialising 40 µs or more.
_AUDIO_DELTAS: dict[Dialect, str] = {"ga": "response.output_audio.delta", "preview": "response.audio.delta"}
_AUDIO_HEADS: dict[Dialect, str] = {
    dialect: f'{{"type":"{name}","event_id":"' for dialect, name in _AUDIO_DELTAS.items()
}
# The same where the id comes first, as Voice Live writes it.
_ID_HEAD = '{"event_id":"'
_AUDIO_AFTER_ID: dict[Dialect, str] = {dialect: f'","type":"{name}","' for dialect, name in _AUDIO_DELTAS.items()}
_EVENT_ID = re.compile(r'"event_id"\s*:\s*"[^"\\]+"')

_USAGE_MODALITIES = ("text_tokens", "audio_tokens", "image_tokens")


def to_azure(event: Event, *, client: Dialect, upstream: Dialect) -> list[Event]:
    """A client's event, checked by the allowlist, in the upstream's dialect: none, one or two events.

    Settings that the upstream lacks are left out, so that they are not fatal. A `session.update` left empty is still
    sent, since its sender waits for `session.updated`. An event that only the other dialect has is sent unchanged:
    Azure answers it with an `error` event, and the talk goes on.
    """
    kind = event.get("type")
    if kind == "session.update" and isinstance(session := event.get("session"), dict):
        return [{**event, "session": session_settings(session, client=client, upstream=upstream)}]
    if kind == "response.create":
        # Beside `response` Voice Live takes `additional_instructions`, which are the agent's to set.
        asked: Event = {name: event[name] for name in ("type", "event_id", "response") if name in event}
        response = asked.get("response")
        if not isinstance(response, dict):
            return [asked]
        asked["response"] = response_settings(response, client=client, upstream=upstream)
        appended = response.get("append_input_items")
        if upstream != "ga" or not isinstance(appended, list):
            return [asked]
        items = items_for(appended, upstream)
        return [*({"type": "conversation.item.create", "item": item} for item in items), asked]
    if kind == "conversation.item.create" and "item" in event:
        return [history_as_text(event, upstream)]
    if kind == "output_audio_buffer.clear" and not client == upstream == "preview":
        return []  # GA has it over WebRTC only, Voice Live for an avatar's output
    return [event]


def to_client(event: Event, *, client: Dialect, upstream: Dialect, new_id: NewId) -> list[Event]:
    """Azure's event, complete, in the client's dialect: none where the dialect has no such event, one, or two.

    GA reports an item twice, when it is created and when it is complete; preview once. `new_id` gives unique ids where
    Azure gave none. Every event has an `event_id`; the first of two keeps Azure's.
    """
    translated = [event] if client == upstream else _translated(event, client=client, upstream=upstream)
    return [completed(each, client, new_id) for each in translated]


def needs_reading(kind: str, *, client: Dialect, upstream: Dialect) -> bool:
    """Whether `to_client` may change more of Azure's events of this type than their name and `event_id`."""
    return kind in _CHANGED_INSIDE or (client != upstream and (kind in _UNKNOWN[client] or kind == "error"))


def renamed(text: str, *, client: Dialect, upstream: Dialect, new_id: NewId) -> str:
    """The text of an Azure event that needs no reading, with its type in the client's dialect and an `event_id`.

    Only its head is read, if that shows both. Text that is not an event comes back unchanged.
    """
    plain = _AUDIO_HEADS[upstream]
    if text.startswith(plain) and not text.startswith('"', len(plain)):
        return text if client == upstream else _AUDIO_HEADS[client] + text[len(plain) :]
    if text.startswith(_ID_HEAD):
        id_end = text.find('"', len(_ID_HEAD))
        plain = _AUDIO_AFTER_ID[upstream]
        if id_end > len(_ID_HEAD) and text.startswith(plain, id_end) and text.find("\\", 0, id_end) < 0:
            return text if client == upstream else text[:id_end] + _AUDIO_AFTER_ID[client] + text[id_end + len(plain) :]
    head = _HEAD.match(text)
    if head is None:
        return _renamed_by_parsing(text, client=client, upstream=upstream, new_id=new_id)
    kind = head[2]
    name = kind if client == upstream else _NAMES[client].get(kind, kind)
    has_id = head[1] or head[3]
    if not has_id and (at := text.find('"event_id"', head.end())) >= 0:
        if _EVENT_ID.match(text, at) is None:
            return _renamed_by_parsing(text, client=client, upstream=upstream, new_id=new_id)
        has_id = True
    if has_id:
        return text if name is kind else f"{text[: head.start(2)]}{name}{text[head.end(2) :]}"
    return f'{text[: head.start(2)]}{name}","event_id":"event_{new_id()}{text[head.end(2) :]}'


def _renamed_by_parsing(text: str, *, client: Dialect, upstream: Dialect, new_id: NewId) -> str:
    try:
        event = parsed(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(event, dict):
        return text
    kind = event.get("type")
    if client != upstream and isinstance(kind, str):
        event["type"] = _NAMES[client].get(kind, kind)
    return compact(completed(event, client, new_id))


def _translated(event: Event, *, client: Dialect, upstream: Dialect) -> list[Event]:
    kind = event.get("type")
    if not isinstance(kind, str):
        return [event]
    if kind in _UNKNOWN[client]:
        return []
    translated = {**event, "type": _NAMES[client].get(kind, kind)}
    if kind in SESSION_EVENTS and isinstance(session := event.get("session"), dict):
        translated["session"] = session_object(session, client=client, upstream=upstream)
    if kind == "error" and isinstance(error := event.get("error"), dict) and not is_own(event):
        param = error.get("param")
        if isinstance(param, str):
            translated["error"] = error | {"param": param_for_client(param, client=client, upstream=upstream)}
    if "item" in event:
        translated["item"] = item_for(event["item"], client)
    if isinstance(response := event.get("response"), dict):
        response = response_object(response, client=client, upstream=upstream)
        if isinstance(output := response.get("output"), list):
            response["output"] = [item_for(item, client) for item in output]
        translated["response"] = response
    if client == "ga" and kind == "conversation.item.created" and is_complete(translated.get("item")):
        done = {name: value for name, value in translated.items() if name != "event_id"}
        return [translated, {**done, "type": "conversation.item.done"}]
    if client == "ga" and kind == _OUTPUT_ITEM_DONE and "item" in translated:
        return [{"type": "conversation.item.done", "item": translated["item"]}, translated]
    return [translated]


def completed(event: Event, client: Dialect, new_id: NewId) -> Event:
    """An event in the client's dialect, with the fields without which official clients throw (docs/azure.md §4.4)."""
    kind = event.get("type")
    event_id = event.get("event_id")
    if not isinstance(event_id, str) or not event_id:
        event_id = f"event_{new_id()}"
    whole: Event = {"type": kind, "event_id": event_id} | {**event, "event_id": event_id}
    if "type" not in event:
        del whole["type"]
    if "item" in event:
        status = _OUTPUT_ITEM_STATUS.get(kind) if isinstance(kind, str) else None
        role = "assistant" if status else None
        whole["item"] = completed_item(event["item"], new_id=new_id, role=role, status=status)
    if "part" in event:
        whole["part"] = completed_part(event["part"])
    if isinstance(response := event.get("response"), dict):
        whole["response"] = response = _with_whole_usage(response)
        if isinstance(output := response.get("output"), list):
            response["output"] = [completed_item(item, new_id=new_id, role="assistant") for item in output]
    session = event.get("session")
    if kind == "session.created" or (kind == "session.updated" and isinstance(session, dict)):
        session = dict(session) if isinstance(session, dict) else {}
        # `@azure/ai-voicelive` delivers no event before it has the id of `session.created`.
        if kind == "session.created" and not (isinstance(session.get("id"), str) and session["id"]):
            session["id"] = f"sess_{new_id()}"
        whole["session"] = {"type": "realtime", "object": "realtime.session", **session} if client == "ga" else session
    if kind == _TRANSCRIPTION_FAILED and isinstance(error := event.get("error"), dict):
        whole["error"] = {name: value for name, value in error.items() if value is not None}
    return whole


def _with_whole_usage(response: Mapping[str, Any]) -> Event:
    """The response with all fields of its `usage`, or without it where Azure left out sums or details.

    `@azure/ai-voicelive` throws on an incomplete `usage`. A count that is missing is 0: Voice Live counts no images and
    sends no `cached_tokens_details`.
    """
    whole = dict(response)
    if whole.get("usage") is None:
        return whole
    usage = whole.pop("usage")
    if not isinstance(usage, dict):
        return whole
    input_tokens, output_tokens = usage.get("input_tokens"), usage.get("output_tokens")
    inputs, outputs = usage.get("input_token_details"), usage.get("output_token_details")
    if not (isinstance(input_tokens, int) and isinstance(output_tokens, int)):
        return whole
    if not (isinstance(inputs, dict) and isinstance(outputs, dict)):
        return whole
    cached = inputs.get("cached_tokens_details")
    whole["usage"] = {
        **usage,
        "total_tokens": _count(usage, "total_tokens", input_tokens + output_tokens),
        "input_token_details": {
            **_counts(inputs, ("cached_tokens", *_USAGE_MODALITIES)),
            "cached_tokens_details": _counts(cached if isinstance(cached, dict) else {}, _USAGE_MODALITIES),
        },
        "output_token_details": _counts(outputs, ("text_tokens", "audio_tokens")),
    }
    return whole


def _counts(counts: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {**counts, **{name: _count(counts, name) for name in names}}


def _count(counts: Mapping[str, Any], name: str, default: int = 0) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else default
