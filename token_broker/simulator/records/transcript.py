"""What the talks of all resources of a process said: by this a failover is judged, not by the broker's counters.

TalkTranscript         the talks, utterances and answers of every resource, oldest first
  TalkRecord           one talk's own view of it, by which the talk writes
SeenTalk               a session: at which resource, from when to when, and who ended it
SeenUtterance          what a client said or wrote, under a key that stays when it is said again elsewhere
SeenAnswer             a response: to which utterance, and how much of it was sent

The key of an utterance is `#7` where its audio is marked (`audio.marked`) or its text says so, else its item's id.
"""

import re
import time
from base64 import b64decode
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from token_broker.simulator.audio import duration_ms, marks

Follows = Literal["utterance", "tool", "answer", "nothing"]
EndedBy = Literal["client", "server", "fault"]

_NUMBERED = re.compile(r"#\d+")
_AUDIO_DELTAS = frozenset({"response.output_audio.delta", "response.audio.delta"})
_TEXT_DELTAS = frozenset(
    {
        "response.output_audio_transcript.delta",
        "response.audio_transcript.delta",
        "response.output_text.delta",
        "response.text.delta",
    }
)


@dataclass(slots=True)
class SeenTalk:
    """A session at one resource."""

    resource: str
    talk: str
    dialect: str
    opened_at: float
    closed_at: float | None = None
    ended_by: EndedBy | None = None


@dataclass(slots=True)
class SeenUtterance:
    """What a client said or wrote; times are Unix seconds."""

    resource: str
    talk: str
    at: float
    key: str
    kind: Literal["speech", "text"]
    item_id: str
    text: str | None
    audio_ms: int
    frames: int = 0
    """Marked frames that came, each counted once."""
    repeated_frames: int = 0
    """Those that came once more within the utterance."""


@dataclass(slots=True)
class SeenAnswer:
    """A response, as far as it was sent."""

    resource: str
    talk: str
    at: float
    response_id: str
    answers: str | None
    """The key of the last utterance before it."""
    follows: Follows
    """What it comes after: an `answer` is one that the client put there, and that is gone on with."""
    asked_by: Literal["detection", "client"]
    instructions: str
    default_persona: bool
    """Whether the session had instructions of nobody's."""
    text: str = ""
    audio_ms: int = 0
    status: str | None = None
    """Of the `response.done` that was sent; null: none was."""

    @property
    def was_heard(self) -> bool:
        """Whether anything of it was sent."""
        return bool(self.text or self.audio_ms)


Entry = SeenTalk | SeenUtterance | SeenAnswer


class TalkTranscript:
    """The talks of a process. It forgets the oldest entries beyond `limit`."""

    def __init__(self, limit: int = 50_000) -> None:
        self._entries: deque[Entry] = deque(maxlen=limit)

    # Copies, in one step: another thread may read while a talk writes.
    @property
    def talks(self) -> list[SeenTalk]:
        return [entry for entry in self._entries.copy() if isinstance(entry, SeenTalk)]

    @property
    def utterances(self) -> list[SeenUtterance]:
        return [entry for entry in self._entries.copy() if isinstance(entry, SeenUtterance)]

    @property
    def answers(self) -> list[SeenAnswer]:
        return [entry for entry in self._entries.copy() if isinstance(entry, SeenAnswer)]

    @property
    def open_talks(self) -> list[SeenTalk]:
        """The sockets and calls that are open now."""
        return [talk for talk in self.talks if talk.closed_at is None]

    def answers_to(self, key: str) -> list[SeenAnswer]:
        """The answers to one utterance, at whichever resource, oldest first."""
        return [answer for answer in self.answers if answer.answers == key]

    def add(self, entry: Entry) -> None:
        self._entries.append(entry)

    def clear(self) -> None:
        """Forgets all but the talks that are open."""
        self._entries = deque(self.open_talks, self._entries.maxlen)

    def to_json(self, resource: str | None = None) -> dict[str, Any]:
        """All of it, or what one resource did."""

        def listed(entries: Sequence[Entry]) -> list[dict[str, Any]]:
            return [asdict(entry) for entry in entries if resource in (None, entry.resource)]

        return {
            "open": len(listed(self.open_talks)),
            "talks": listed(self.talks),
            "utterances": listed(self.utterances),
            "answers": listed(self.answers),
        }


class TalkRecord:
    """Writes one talk into the transcript. `opened` comes first."""

    def __init__(self, transcript: TalkTranscript | None = None, resource: str = "default") -> None:
        self._transcript = transcript or TalkTranscript()
        self._resource = resource
        self._talk: SeenTalk
        # Those whose end was not sent yet: a silent talk may owe several.
        self._unsent: dict[str, SeenAnswer] = {}

    def opened(self, talk: str, dialect: str) -> None:
        self._talk = SeenTalk(self._resource, talk, dialect, time.time())
        self._transcript.add(self._talk)

    def closed(self, by: EndedBy) -> None:
        """The talk has ended; who ended it first counts."""
        if self._talk.closed_at is None:
            self._talk.closed_at, self._talk.ended_by = time.time(), by

    def utterance(self, item_id: str, text: str | None, pcm: bytes) -> None:
        """A user's message came, spoken or written."""
        frames = Counter(marks(pcm))
        self._transcript.add(
            SeenUtterance(
                self._resource,
                self._talk.talk,
                time.time(),
                utterance_key(text, pcm, item_id),
                "speech" if pcm else "text",
                item_id,
                text,
                duration_ms(pcm),
                len(frames),
                frames.total() - len(frames),
            )
        )

    def answer(
        self,
        response_id: str,
        answers: str | None,
        follows: Follows,
        *,
        by_client: bool,
        instructions: str,
        default_persona: bool,
    ) -> None:
        """A response begins."""
        answer = SeenAnswer(
            self._resource,
            self._talk.talk,
            time.time(),
            response_id,
            answers,
            follows,
            "client" if by_client else "detection",
            instructions,
            default_persona,
        )
        self._unsent[response_id] = answer
        self._transcript.add(answer)

    def said(self, response_id: str, text: str, audio_ms: int) -> None:
        """A piece of an answer went out, in an API whose events do not name their answer."""
        if answer := self._unsent.get(response_id):
            answer.text += text
            answer.audio_ms += audio_ms

    def answered(self, response_id: str, status: str) -> None:
        """That answer is over."""
        if answer := self._unsent.pop(response_id, None):
            answer.status = status

    def sent(self, event: dict[str, Any]) -> None:
        """An event went out to the client."""
        name = event["type"]
        if name == "response.done":
            if answer := self._unsent.pop(event["response"]["id"], None):
                answer.status = event["response"]["status"]
        elif answer := self._unsent.get(event.get("response_id", "")):
            if name in _AUDIO_DELTAS:
                answer.audio_ms += duration_ms(b64decode(event["delta"]))
            elif name in _TEXT_DELTAS:
                answer.text += event["delta"]


def utterance_key(text: str | None, pcm: bytes, item_id: str) -> str:
    """`#7` where the audio is marked or the text says it, else the item's id."""
    mark = next(marks(pcm), None)
    if mark is not None:
        return f"#{mark.utterance}"
    found = _NUMBERED.search(text or "")
    return found[0] if found else item_id
