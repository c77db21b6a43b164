"""Cuts and silences of one talk: which of its events still go out, and what happens to its socket. No I/O, no clock.

What a silent talk holds back goes out when it wakes, as from a socket that everybody took for dead.
"""

from base64 import b64decode
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from token_broker.simulator.audio import duration_ms
from token_broker.simulator.faults.fault_base import Armed
from token_broker.simulator.faults.fault_table import FaultTable
from token_broker.simulator.faults.talk_faults import CutFault, InterruptionFault, Point, SilenceFault

Event = dict[str, Any]

# More than an hour's events. A talk that never wakes must not fill the memory.
_MOST_HELD = 20_000
_NEVER = float("inf")
_AUDIO_DELTAS = frozenset({"response.output_audio.delta", "response.audio.delta"})
_CONTENT_DELTAS = _AUDIO_DELTAS | {
    "response.output_audio_transcript.delta",
    "response.audio_transcript.delta",
    "response.output_text.delta",
    "response.text.delta",
    "response.function_call_arguments.delta",
}
_PASSED_BY: dict[str, Point] = {
    "session.created": "session.created",
    "session.updated": "session.updated",
    "input_audio_buffer.speech_started": "speech_started",
    "input_audio_buffer.speech_stopped": "speech_stopped",
    "input_audio_buffer.committed": "committed",
    "conversation.item.input_audio_transcription.completed": "transcript",
    "response.created": "response.created",
    "response.done": "response.done",
}


@dataclass(frozen=True, slots=True)
class Cut:
    """The socket is to be cut here; nothing follows."""

    how: Literal["reset", "eof", "close"]
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pongs:
    """From here on pings are answered, or not."""

    on: bool


Outgoing = Event | Cut | Pongs


class _Progress:
    """How far the response that is being sent has come."""

    def __init__(self) -> None:
        self._sound_ms = self._last_ms = 0
        self._has_content = False

    def crossed(self, sound_ms: int) -> bool:
        """Whether the last event brought the response's sound to so much, or beyond."""
        return self._last_ms < max(sound_ms, 1) <= self._sound_ms

    def before(self, event: Event) -> Iterator[Point]:
        """The points that are passed before an event is sent."""
        match event["type"]:
            case "response.output_audio.done" | "response.audio.done":
                yield "last_sound"
            case "response.output_item.added" if event["output_index"] > 0:
                yield "between_items"
            case "response.done" if self._has_content:
                yield "last_content"

    def after(self, event: Event) -> Iterator[Point]:
        """Those that are passed with it."""
        name = event["type"]
        if name == "response.created":
            self._sound_ms, self._has_content = 0, False
        if name in _PASSED_BY:
            yield _PASSED_BY[name]
        elif name in _CONTENT_DELTAS:
            if name in _AUDIO_DELTAS:
                self._last_ms = self._sound_ms
                self._sound_ms += duration_ms(b64decode(event["delta"]))
                yield "sound"
            if not self._has_content:
                self._has_content = True
                yield "first_content"


class Interruptions:
    """The interruptions of one talk on a path; `table` may change at any time."""

    def __init__(self, table: FaultTable, path: str) -> None:
        self.table = table
        self._path = path
        self._progress = _Progress()
        self._passed: dict[Armed, int] = {}
        # Those that were meant for the talks of that moment.
        self._struck = {armed for armed, fault in table.of_kind(InterruptionFault, path) if fault.at == "now"}
        self._pending: deque[tuple[float, InterruptionFault]] = deque()
        self._held: deque[Outgoing] = deque(maxlen=_MOST_HELD)
        self._silence: SilenceFault | None = None
        self._wakes_s = _NEVER
        self._out: list[Outgoing] = []
        self.cut = False

    @property
    def silent(self) -> bool:
        """Whether the talk sends nothing at the moment."""
        return self._silence is not None

    @property
    def due_s(self) -> float:
        """When `advance` has something to do next."""
        return min(self._wakes_s, min((due_s for due_s, _ in self._pending), default=_NEVER))

    def open(self, now_s: float) -> list[Outgoing]:
        """The handshake was answered."""
        self._pass("handshake", now_s)
        return self._drain()

    def pass_on(self, events: Iterable[Event], now_s: float) -> list[Outgoing]:
        """What goes out of these events, and what happens between them."""
        for event in events:
            for point in self._progress.before(event):
                self._pass(point, now_s)
            self._put(event)
            for point in self._progress.after(event):
                self._pass(point, now_s)
        return self._drain()

    def advance(self, now_s: float) -> list[Outgoing]:
        """Carries out what is due, and what was set for the talks of this moment."""
        for armed, fault in self.table.of_kind(InterruptionFault, self._path):
            if fault.at == "now" and armed not in self._struck:
                self._struck.add(armed)
                self._strike(armed, fault, now_s)
        for due_s, fault in list(self._pending):
            if due_s <= now_s:
                self._pending.remove((due_s, fault))
                self._begin(fault, now_s)
        if now_s >= self._wakes_s:
            self._wake()
        return self._drain()

    def _pass(self, point: Point, now_s: float) -> None:
        if self.silent:
            # What is held back has not been sent, so it has passed no point yet.
            return
        for armed, fault in self.table.of_kind(InterruptionFault, self._path):
            if fault.at != point or (point == "sound" and not self._progress.crossed(fault.ms)):
                continue
            passed = self._passed.get(armed, 0)
            if passed < fault.skip:
                self._passed[armed] = passed + 1
            else:
                self._strike(armed, fault, now_s)

    def _strike(self, armed: Armed, fault: InterruptionFault, now_s: float) -> None:
        armed.use()
        if fault.seconds:
            self._pending.append((now_s + fault.seconds, fault))
        else:
            self._begin(fault, now_s)

    def _begin(self, fault: InterruptionFault, now_s: float) -> None:
        match fault:
            case _ if self.cut:
                return
            case CutFault():
                # Not held back: a silent socket can be cut, too.
                self._out.append(Cut(fault.how, fault.code, fault.reason))
                self.cut = True
            case SilenceFault():
                self._silence = fault
                self._wakes_s = _NEVER if fault.lasts_s is None else now_s + fault.lasts_s
                self._out.append(Pongs(on=fault.pongs))

    def _wake(self) -> None:
        silence, self._silence, self._wakes_s = self._silence, None, _NEVER
        self._out.append(Pongs(on=True))
        self._out += self._held
        self._held.clear()
        for name in silence.then if silence else ():
            match name:
                case "call":
                    call = {"type": "function_call", "id": "item_late", "call_id": "call_late", "name": "late_call"}
                    self._put(
                        {
                            "type": "response.function_call_arguments.done",
                            "event_id": "event_late_call",
                            "response_id": "resp_late",
                            "item_id": "item_late",
                            "output_index": 0,
                            "call_id": "call_late",
                            "name": "late_call",
                            "arguments": "{}",
                        }
                    )
                    self._put(
                        {
                            "type": "response.output_item.done",
                            "event_id": "event_late_item",
                            "response_id": "resp_late",
                            "output_index": 0,
                            "item": call | {"object": "realtime.item", "status": "completed", "arguments": "{}"},
                        }
                    )
                case "session_expired":
                    error = {"type": "invalid_request_error", "code": "session_expired", "message": "Session expired."}
                    self._put({"type": "error", "event_id": "event_late_error", "error": error})
                case "close":
                    self._out.append(Cut("close", 1001, "session_expired"))
                    self.cut = True

    def _put(self, event: Event) -> None:
        if self.cut:
            return
        if self._silence is None:
            self._out.append(event)
        else:
            self._held.append(event)

    def _drain(self) -> list[Outgoing]:
        out, self._out = self._out, []
        return out
