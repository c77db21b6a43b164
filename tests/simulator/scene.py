"""A talk without a socket, with a clock of the test's own."""

import base64
import json
from typing import Any

import pytest

from token_broker.simulator.realtime.dialects import GA, PREVIEW, VOICE_LIVE, Dialect
from token_broker.simulator.realtime.response_plan import ScriptedResponse
from token_broker.simulator.realtime.simulated_talk import SimulatedTalk, TalkOptions
from token_broker.simulator.session_bodies import flat_session, ga_session, voice_live_session

DIALECTS = [GA, PREVIEW, VOICE_LIVE]
SESSIONS: dict[str, Any] = {
    "ga": ga_session.RealtimeSession(type="realtime", model="gpt-realtime"),
    "preview": flat_session.FlatSession(model="gpt-realtime"),
    "voice_live": voice_live_session.VoiceLiveSession(model="gpt-realtime"),
}
by_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


class Scene:
    """A talk and its clock. Everything that came out is in `events`."""

    def __init__(self, dialect: Dialect = GA, **options: Any) -> None:
        self.dialect = dialect
        self.now_s = 100.0
        self._scripted: list[ScriptedResponse] = []
        given = TalkOptions(next_response=self._next_response, **options)
        self.talk = SimulatedTalk(dialect, SESSIONS[dialect.name], given, 1_800_000_000)
        self.events = self.talk.open(self.now_s)

    def script(self, *responses: dict[str, Any]) -> None:
        """What the next responses are to be."""
        self._scripted += [ScriptedResponse.model_validate(response) for response in responses]

    def update(self, **session: Any) -> list[dict[str, Any]]:
        """A `session.update`, with the type that GA's sessions need."""
        return self.send("session.update", session=session | ({"type": "realtime"} if self.dialect is GA else {}))

    def ask(self, text: str) -> list[dict[str, Any]]:
        """Writes something, asks for the answer, and waits for all of it."""
        self.send("conversation.item.create", item=user_text(text))
        return self.send("response.create") + self.wait(20)

    def send(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        return self.receive(json.dumps({"type": name, **fields}))

    def receive(self, message: str | bytes) -> list[dict[str, Any]]:
        return self._note(self.talk.receive(message, self.now_s))

    def say(self, pcm: bytes) -> list[dict[str, Any]]:
        return self.send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())

    def hear_all(self) -> list[dict[str, Any]]:
        """Has all audio that was sent so far been heard, where the server plays it."""
        return self._note(self.talk.played())

    def wait(self, seconds: float) -> list[dict[str, Any]]:
        """Lets the time pass, stopping wherever something is due."""
        until, came = self.now_s + seconds, []
        while self.talk.due_s <= until:
            self.now_s = max(self.talk.due_s, self.now_s)
            came += self._note(self.talk.advance(self.now_s))
        self.now_s = until
        return came

    def only(self, name: str) -> dict[str, Any]:
        (event,) = self.all(name)
        return event

    def all(self, name: str) -> list[dict[str, Any]]:
        """All events of GA's name, or what the dialect calls it."""
        return [event for event in self.events if event["type"] == self.dialect.wire_name(name)]

    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.only("error")["error"]
        return error

    def _next_response(self) -> ScriptedResponse | None:
        return self._scripted.pop(0) if self._scripted else None

    def _note(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.events += events
        return events


def user_text(text: str) -> dict[str, Any]:
    """An item that the user wrote."""
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def names_of(events: list[dict[str, Any]]) -> list[str]:
    """The names, of each kind of delta only the first."""
    names = [event["type"] for event in events]
    return [name for number, name in enumerate(names) if not name.endswith(".delta") or name not in names[:number]]
