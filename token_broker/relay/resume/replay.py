"""What a new session is sent, so that the talk goes on in it. Pure but for the ids that it makes.

An utterance that is over is committed by hand, with turn detection off: then exactly one `response.create` asks for its
answer, and turn detection asks for none. It is the way in which Azure transcribes it, too. Audio of an utterance under
way comes last, with turn detection on again.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from strategies.session_model.agent_settings import Dialect
from strategies.session_model.session_paths import DETECTION
from token_broker.relay.dialects.session_settings import value_at
from token_broker.relay.dialects.translation import to_azure
from token_broker.relay.dialects.values import LEFT_OUT
from token_broker.relay.event_text import compact, parsed
from token_broker.relay.resume.held_audio import Payload
from token_broker.relay.resume.history import Item, text_of
from token_broker.relay.resume.ledger import ASK_ID
from token_broker.relay.resume.restored import COMMIT_ID, NOTE_IDS, UPDATE_ID, Restored
from token_broker.relay.resume.steps import Ask, Listen, Resend, Say, Speech, Step
from token_broker.web.requests import uuid7

__all__ = ["PROBES", "NewSession", "Replay", "item_event", "replay"]

Event = Mapping[str, Any]

# Azure takes ids of at most 32 characters.
_FITTING_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_GO_ON = (
    "The connection broke while you were speaking. The user has heard your last answer as far as it stands in the "
    "conversation. Go on exactly where it stops. Do not greet, do not repeat anything, do not mention the interruption."
)
_NO_CHANGE: Mapping[Dialect, dict[str, str]] = {"ga": {"type": "realtime"}, "preview": {}}
PROBES: Mapping[Dialect, str] = {
    dialect: compact({"type": "session.update", "event_id": UPDATE_ID, "session": session})
    for dialect, session in _NO_CHANGE.items()
}
"""A `session.update` that changes nothing: Azure confirms it, and so shows that it lives."""

_MODALITIES: Mapping[Dialect, str] = {"ga": "output_modalities", "preview": "modalities"}
_PLAIN_CHARS = len('{"type":"input_audio_buffer.append","audio":""}')


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session that Azure has confirmed: its dialect, and the settings that it was sent."""

    dialect: Dialect
    settings: Event

    @property
    def detection(self) -> Any:
        """Its turn detection; None where it has none."""
        found = value_at(self.settings, DETECTION[self.dialect])
        return None if found is LEFT_OUT else found

    def with_detection(self, detection: Any) -> str:
        """The `session.update` that sets the turn detection alone."""
        session: dict[str, Any] = {"type": "realtime"} if self.dialect == "ga" else {}
        inside = session
        *path, last = DETECTION[self.dialect]
        for name in path:
            inside[name] = inside = {}
        inside[last] = detection
        return compact({"type": "session.update", "event_id": UPDATE_ID, "session": session})

    def asking(self, ask: Ask, old: Dialect) -> list[str]:
        """The `response.create`, which says the modalities: after restored text a model may answer in text alone."""
        asked = dict(ask.request or {"type": "response.create", "event_id": ASK_ID})
        event, *others = reversed(to_azure(asked, client=old, upstream=self.dialect))
        response = dict(event.get("response") or {})
        name = _MODALITIES[self.dialect]
        if name not in response and self.settings.get(name):
            response[name] = self.settings[name]
        if ask.go_on:
            # The instructions of a response take the place of the session's: the agent's come along.
            response["instructions"] = f"{text_of(self.settings.get('instructions'))}\n\n{_GO_ON}"
            response.pop("input", None)
        texts = [compact(each) for each in reversed(others)]
        return [*texts, compact({**event, "response": response})]


@dataclass(slots=True)
class Replay:
    """The messages for the new session, and how many characters of audio they have: committed, and still open."""

    messages: list[Payload] = field(default_factory=list)
    committed_chars: int = 0
    open_chars: int = 0


def replay(steps: Sequence[Step], session: NewSession, *, old: Dialect, restored: Restored) -> Replay:
    """The messages for these steps. `old` is the dialect of the session that was lost."""
    made = Replay()
    detection = session.detection
    by_hand = detection is not None and any(isinstance(step, Speech) for step in steps)
    if by_hand:
        made.messages.append(session.with_detection(None))
        restored.expect_update()
    texts: set[str] = set()
    for step in steps:
        match step:
            case Say(item=item):
                fits = _FITTING_ID.fullmatch(item.item_id)
                item_id = item.item_id if fits else f"broker{uuid7().replace('-', '')[-24:]}"
                if item_id.startswith(NOTE_IDS):
                    restored.expect_note(item_id)
                else:
                    restored.expect_item(item_id, item.item_id)
                    texts.add(item.item_id)
                made.messages.append(item_event(item, item_id, session.dialect))
            case Speech(item_id=shown_as, appends=appends, told=told):
                restored.expect_commit(shown_as, told=told)
                made.messages += [*appends, compact({"type": "input_audio_buffer.commit", "event_id": COMMIT_ID})]
                made.committed_chars += _chars(appends)
            case Resend(text=text):
                translated = (
                    [] if old == session.dialect else to_azure(parsed(text), client=old, upstream=session.dialect)
                )
                made.messages += map(compact, translated) if translated else [text]
            case Ask():
                made.messages += session.asking(step, old)
            case Listen(appends=appends, item_id=shown_as):
                if by_hand:
                    made.messages.append(session.with_detection(detection))
                    restored.expect_update()
                    by_hand = False
                if shown_as:
                    restored.expect_speech(shown_as)
                made.messages += appends
                made.open_chars += _chars(appends)
    if by_hand:
        made.messages.append(session.with_detection(detection))
        restored.expect_update()
    restored.know(frozenset(texts))
    return made


def item_event(item: Item, item_id: str, dialect: Dialect) -> str:
    """The `conversation.item.create` that tells a session of an item, by this id."""
    stated: dict[str, Any] = {"id": item_id}
    if item.kind == "call":
        known = {name: item.fields.get(name, "") for name in ("call_id", "name", "arguments")}
        stated |= {"type": "function_call", **known}
    elif item.kind == "output":
        known = {name: item.fields.get(name, "") for name in ("call_id", "output")}
        stated |= {"type": "function_call_output", **known}
    else:
        said_by_assistant = "text" if dialect == "preview" else "output_text"
        kind = "input_text" if item.kind == "user" else said_by_assistant
        stated |= {"type": "message", "role": item.kind, "content": [{"type": kind, "text": item.text}]}
    event_id = f"broker_history_{item_id}"
    return compact({"type": "conversation.item.create", "event_id": event_id, "item": stated})


def _chars(appends: Sequence[Payload]) -> int:
    return sum(map(len, appends)) - _PLAIN_CHARS * len(appends)
