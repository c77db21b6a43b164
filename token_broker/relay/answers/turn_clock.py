"""How long a user waits in a talk: from the end of their speech to the first sound of the answer. Pure.

There is at most one sample a turn of the user's. What is not known for certain gives none: it might be too short.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from token_broker.relay.answers.actions import Reason

__all__ = ["TurnClock", "TurnLatency", "WaitFrom"]

Event = Mapping[str, Any]
WaitFrom = Literal["speech_stopped", "commit", "transcript_end"]
"""What begins a wait. `speech_stopped`: Azure noticed that the user stopped; the silence that turn detection waits for
lies before it, and is not inside. `commit`: the client committed the speech, and no such silence is anywhere.
`transcript_end`: the last word of the transcript ends there, on the timeline of Azure's session."""

_RESPONSE_ID = re.compile(r'"response_id"\s*:\s*"([^"\\]*)"')
_NO_ANSWERS: frozenset[Reason | None] = frozenset({"greeting", "say"})  # the agent speaks, and answers nothing
_CALLS = frozenset({"function_call", "mcp_call", "mcp_approval_request"})


@dataclass(frozen=True, slots=True)
class TurnLatency:
    """One turn's wait, in seconds, and what it was measured from."""

    wait_s: float
    begins: WaitFrom

    @property
    def fields(self) -> dict[str, Any]:
        """Those of `broker.latency`."""
        return {"turn_ms": round(self.wait_s * 1000), "from": self.begins}


class TurnClock:
    """One talk's. Times are in seconds of any steady clock."""

    def __init__(self) -> None:
        self.waits = False
        """Whether an answer to the user's speech is made of which nothing was heard yet: `sounded` may say more."""
        self._stopped: tuple[float, WaitFrom] | None = None
        self._commit_s: float | None = None  # the client's, which Azure has not confirmed
        self._answer = ""  # whose sound is waited for
        self._blind = False  # speech that Azure hears now may have been said earlier

    def client_sent(self, kind: str, event: Event, now_s: float) -> None:
        """Takes an event of the client's that goes to Azure; an append of audio is none of interest."""
        if kind == "input_audio_buffer.commit":
            self._commit_s = None if self._blind else now_s
            self._blind = False
        elif kind == "input_audio_buffer.clear":
            self._commit_s = None
        elif kind in {"conversation.item.create", "input_text.done"}:
            item = event.get("item")
            typed = kind == "input_text.done" or (isinstance(item, dict) and item.get("role") == "user")
            if typed and not self.waits:  # the next answer is to the text as well
                self._stopped = None

    def azure_sent(self, event: Event, now_s: float, *, reason: Reason | None = None, again: bool = False) -> None:
        """Takes a parsed event of Azure's. `reason` says why the broker asked for this answer, where it did; `again`:
        the answer failed, and is asked for once more.
        """
        kind = event.get("type")
        if kind == "input_audio_buffer.speech_started":
            self._forget()
        elif kind == "input_audio_buffer.speech_stopped":
            self._stopped = None if self._blind else (now_s, "speech_stopped")
            self._blind = False
        elif kind == "input_audio_buffer.committed":
            if self._commit_s is not None and self._stopped is None:
                self._stopped = (self._commit_s, "commit")
            self._commit_s = None
        elif kind == "error":
            error = event.get("error")
            if isinstance(error, dict) and error.get("code") == "input_audio_buffer_commit_empty":
                self._commit_s = None
        elif kind in {"response.created", "response.done"} and isinstance(response := event.get("response"), dict):
            response_id = str(response.get("id"))
            if kind == "response.created":
                outside = "conversation_id" in response and response["conversation_id"] is None
                if self._stopped is not None and not outside and reason not in _NO_ANSWERS:
                    self._answer, self.waits = response_id, True
            elif self.waits and response_id == self._answer:
                self._answer, self.waits = "", False
                output = response.get("output")
                items = output if isinstance(output, list) else []
                calls = any(isinstance(item, dict) and item.get("type") in _CALLS for item in items)
                if not again and not (calls and response.get("status") == "completed"):
                    self._stopped = None  # cancelled, failed or mute

    def sounded(self, delta: str, now_s: float) -> TurnLatency | None:
        """The turn's sample, where this delta of audio, as Azure wrote it, is the first of its answer."""
        found = _RESPONSE_ID.search(delta)
        return None if found is None else self.began_to_sound(found[1], now_s)

    def began_to_sound(self, response_id: str, now_s: float) -> TurnLatency | None:
        """The same for the id of an answer of which something is heard: over WebRTC Azure tells it."""
        if not self.waits or response_id != self._answer or self._stopped is None:
            return None
        stopped_s, begins = self._stopped
        self._forget()
        self._blind = False
        return TurnLatency(max(0.0, now_s - stopped_s), begins)

    def cut(self) -> None:
        """The session is gone. A turn whose end is known goes on; the next one hears late what was said meanwhile."""
        self._answer, self.waits, self._commit_s = "", False, None
        self._blind = True

    def _forget(self) -> None:
        self._answer, self.waits, self._stopped, self._commit_s = "", False, None, None
