"""A talk with the simulator in either dialect, directly or through the translation, on a simulated clock."""

import itertools
import json
import re
from typing import Any

from strategies.base import Dialect
from token_broker.relay.dialects.talk_translator import TalkTranslator
from token_broker.relay.dialects.translation import renamed, to_azure, to_client
from token_broker.simulator.realtime import dialects as simulated
from token_broker.simulator.realtime.simulated_talk import SimulatedTalk, TalkOptions
from token_broker.simulator.session_bodies import ga_session, voice_live_session

__all__ = ["TranslatedTalk", "counted", "meaning", "without_live_extras"]

Event = dict[str, Any]

_ID = re.compile(r"(item|resp|conv|sess)_[0-9a-f]+")


def counted() -> Any:
    """Ids that differ from Azure's."""
    numbers = itertools.count(1)
    return lambda: f"made{next(numbers)}"


class TranslatedTalk:
    """A client that speaks its own dialect with the simulator, which speaks the upstream's.

    `events` are those that the client got, as a compatible endpoint tells them; `sent` those that the simulator sent.
    """

    def __init__(self, client: Dialect, upstream: Dialect) -> None:
        self.client, self.upstream = client, upstream
        self.events: list[Event] = []
        self.sent: list[Event] = []
        self._new_id = counted()
        self._translator = TalkTranslator(client, new_id=self._new_id)
        self._now_s = 100.0
        dialect = simulated.GA if upstream == "ga" else simulated.VOICE_LIVE
        session: Any = ga_session.RealtimeSession(type="realtime", model="gpt-realtime")
        if upstream == "preview":
            session = voice_live_session.VoiceLiveSession(model="gpt-realtime")
        self._talk = SimulatedTalk(dialect, session, TalkOptions(), 1_800_000_000)
        self._note(self._talk.open(self._now_s))

    def send(self, name: str, **fields: Any) -> None:
        asked: Event = {"type": name, **fields}
        crossed = (
            [asked] if self.client == self.upstream else to_azure(asked, client=self.client, upstream=self.upstream)
        )
        for event in crossed:
            self._note(self._talk.receive(json.dumps(event), self._now_s))

    def wait(self, seconds: float) -> None:
        """Advances the clock, stopping wherever the simulator has something due."""
        until_s = self._now_s + seconds
        while self._talk.due_s <= until_s:
            self._now_s = max(self._talk.due_s, self._now_s)
            self._note(self._talk.advance(self._now_s))
        self._now_s = until_s

    def last(self, name: str) -> Event:
        """The newest event of that name."""
        return next(event for event in reversed(self.events) if event["type"] == name)

    def _note(self, events: list[Event]) -> None:
        self.sent += events
        for event in events:
            self.events += self._carried(event)

    def _carried(self, event: Event) -> list[Event]:
        """As the relay does it: an event that needs no parsing is renamed as text."""
        if self._translator.reads(event["type"], self.upstream):
            return self._translator.to_client(event, self.upstream)
        text = renamed(json.dumps(event), client=self.client, upstream=self.upstream, new_id=self._new_id)
        told: Event = json.loads(text)
        assert [told] == to_client(event, client=self.client, upstream=self.upstream, new_id=self._new_id)
        return [told]


def meaning(events: list[Event]) -> list[Event]:
    """Events without what is random, or exists in one dialect only.

    Ids become numbers in the order of their appearance. Limits are told in GA alone; the place of a finished item was
    told when it was made; what a session or a response is set to differs by the defaults of the two. Recorded Azure
    differs further (docs/azure.md §4.5): GA pads its deltas, says a part twice and gives its items no `object`; Voice
    Live counts reasoning, bills no transcript there, and leaves the text of a finished part empty.
    """
    numbers: dict[str, str] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items() if inner is not None and name != "event_id"}
        if isinstance(value, list):
            return [plain(inner) for inner in value]
        if isinstance(value, str) and _ID.fullmatch(value):
            return numbers.setdefault(value, f"{value.partition('_')[0]} {len(numbers)}")
        return value

    told = []
    for event in map(plain, events):
        if event["type"] == "rate_limits.updated":
            continue
        if event["type"] == "conversation.item.done":
            event.pop("previous_item_id", None)
        event.pop("session", None)
        event.pop("obfuscation", None)
        if event["type"].startswith("response.content_part."):
            event.pop("content", None)
            event["part"].pop("text", None)
        if event["type"] == "conversation.item.input_audio_transcription.completed":
            event.pop("usage", None)
        event.get("response", {}).get("usage", {}).get("output_token_details", {}).pop("reasoning_tokens", None)
        for item in [event.get("item", {}), *event.get("response", {}).get("output", [])]:
            item.pop("object", None)
        for name in ("audio", "voice", "output_audio_format", "temperature", "max_output_tokens"):
            event.get("response", {}).pop(name, None)
        told.append(event)
    return told


# What recorded Azure states in a session or a frame, and no package's model knows; the translation lets it pass.
_LIVE_EXTRAS = {
    "obfuscation",
    "truncation_strategy",
    "greeting",
    "handoff",
    "idle_timeout_ms",
    "speech_duration_ms",
    "appended_text_after_truncation",
    "reasoning_tokens",
}


def without_live_extras(value: Any) -> Any:
    """An event as the official packages' models know it."""
    if isinstance(value, dict):
        extras = _LIVE_EXTRAS | ({"content"} if "part" in value else set())
        return {name: without_live_extras(inner) for name, inner in value.items() if name not in extras}
    return [without_live_extras(inner) for inner in value] if isinstance(value, list) else value
