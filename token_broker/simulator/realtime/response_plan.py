"""What one response is to be, and the pieces in which it comes.

Pure: the talk asks for a plan, and `responses.py` emits it over time. A plan follows, in this order, what a test
scripted, the markers in the user's last words, the session's `tool_choice`, and what was last said or written.

    [call get_weather {"city": "London"}]    calls a tool; without arguments they are made up from its parameters
    [fail]                                   ends as `failed`, with nothing said
    [incomplete]                             ends as `incomplete`, half of it said

No model reads the instructions, and two things in them are followed all the same. A response's own instructions are
quoted. Those that say to call a tool, by its name or as "the tool", get a call in answer to the user.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, JsonValue

from token_broker.simulator.audio import BYTES_PER_MS, described, tone
from token_broker.simulator.realtime.conversation import (
    FunctionOutput,
    Item,
    ListedTool,
    McpApprovalRequest,
    McpCall,
    Message,
)
from token_broker.simulator.session_bodies.check import Strict

CHUNK_MS = 100
_CHUNK_BYTES = CHUNK_MS * BYTES_PER_MS
_TONE_A_WORD_MS = 150
_SHORTEST_TONE_MS = 300
_LONGEST_TONE_MS = 3000
_LONGEST_QUOTE = 500
_LONGEST_TAIL = 40
_MARKER = re.compile(r"\[(?:call (?P<name>[\w.-]+)|(?P<end>fail|incomplete)(?=\]))")
_TOLD_TOOL = re.compile(r"\b(?:call|use)\s+(?:the\s+)?(?:(?P<name>[\w.-]+)\s+)?(?:function|tool)\b", re.IGNORECASE)
# A word that means something, where a parameter's name says what it is about.
_EXAMPLES = {"location": "Beijing", "city": "London", "country": "France"}
_MADE_UP: dict[str, JsonValue] = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}

EndStatus = Literal["completed", "failed", "incomplete"]


class ScriptedCall(Strict):
    """A tool that a scripted response calls. `arguments` is an object, or text that is sent as it is."""

    name: str = Field(min_length=1)
    arguments: dict[str, JsonValue] | str = Field(default_factory=dict)


class ScriptedResponse(Strict):
    """What the next response is to be. Without `say` and `calls` it says what it would have said."""

    say: str | None = None
    calls: list[ScriptedCall] = Field(default=[])
    status: EndStatus = "completed"
    reason: Literal["max_output_tokens", "content_filter"] = "max_output_tokens"
    """Why a response is incomplete."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of what is said; either part may be empty."""

    text: str
    pcm: bytes = b""


@dataclass(frozen=True, slots=True)
class Words:
    """An output message. Without PCM it is only written."""

    text: str
    pcm: bytes = b""
    voice: "Future[bytes] | None" = None
    """The PCM that goes before, as soon as it is made; empty where it can't be."""

    def spoken(self) -> "Words":
        """The words with the voice that was made for them, or over a tone where it is missing or late."""
        voice = self.voice.result() if self.voice is not None and self.voice.done() else b""
        if not voice:
            return output_message(self.text, self.pcm, speaks=True)
        return Words(self.text, voice + self.pcm)

    def pieces(self) -> list[Piece]:
        """The words, spread evenly over the audio."""
        words = re.findall(r"\s*\S+|\s+\Z", self.text) or [self.text]
        if not self.pcm:
            return [Piece(word) for word in words]
        cuts = [self.pcm[begin : begin + _CHUNK_BYTES] for begin in range(0, len(self.pcm), _CHUNK_BYTES)]
        shares = [math.ceil(len(words) * number / len(cuts)) for number in range(len(cuts) + 1)]
        return [
            Piece("".join(words[first:last]), cut) for cut, first, last in zip(cuts, shares, shares[1:], strict=False)
        ]


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """An output that calls a tool: the client's function, or with `mcp` one that the service calls."""

    name: str
    arguments: str
    mcp: ListedTool | None = None
    approval_request_id: str | None = None
    """The request by which the client allowed the call."""

    def pieces(self) -> list[str]:
        """The arguments in deltas such as a model's tokens make."""
        return re.findall(r"\w+|\s+|[^\w\s]+", self.arguments)


@dataclass(frozen=True, slots=True)
class ResponsePlan:
    """The outputs of a response, and how it ends."""

    outputs: Sequence[Words | PlannedCall]
    status: EndStatus = "completed"
    reason: str = "max_output_tokens"
    error: dict[str, Any] | None = None
    """Why it failed; null: the server's own fault."""
    thinking_s: float | None = None
    """From its creation to its first content; null: as usual."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that a response may call."""

    functions: list[dict[str, Any]] = field(default_factory=list)
    """As the session has them; entries of other types are ignored."""
    mcp: Sequence[ListedTool] = ()
    choice: Any = "auto"

    def call(self, name: str, arguments: str | None = None) -> PlannedCall | None:
        """A call of that tool; None if there is none of that name, or tools are off."""
        if self.choice == "none":
            return None
        for tool in self.functions:
            if tool["type"] == "function" and tool["name"] == name:
                return PlannedCall(name, _made_up(tool.get("parameters")) if arguments is None else arguments)
        for known in self.mcp:
            if known.name == name:
                return PlannedCall(name, arguments or "{}", known)
        return None

    def told(self, instructions: str) -> PlannedCall | None:
        """The call that instructions ask for: of the first tool that they name, or of the only one there is."""
        names = [tool["name"] for tool in self.functions if tool["type"] == "function"]
        only = names[0] if len(names) == 1 else ""
        calls = (self.call(asked["name"] or only) for asked in _TOLD_TOOL.finditer(instructions))
        return next((call for call in calls if call is not None), None)

    def approved(self, request: McpApprovalRequest) -> PlannedCall | None:
        """The call that the client has allowed; None if its server has left the session."""
        for tool in self.mcp:
            if (tool.server_label, tool.name) == (request.server_label, request.name):
                return PlannedCall(tool.name, request.arguments, tool, request.id)
        return None

    def required(self) -> PlannedCall | None:
        """The call that `tool_choice` demands, if it demands one."""
        if isinstance(self.choice, str):
            names = [tool["name"] for tool in self.functions if tool["type"] == "function"]
            names += [tool.name for tool in self.mcp]
            if self.choice == "required":
                return self.call(names[0]) if names else None
            # The preview names a function by the word alone.
            return self.call(self.choice) if self.choice in names else None
        chosen = self.choice if isinstance(self.choice, dict) else self.choice.model_dump()
        name = chosen.get("name") or next(
            (tool.name for tool in self.mcp if tool.server_label == chosen.get("server_label")), ""
        )
        return self.call(name)


def plan_for(
    items: Sequence[Item],
    *,
    speaks: bool,
    tools: Tools,
    scripted: ScriptedResponse | None,
    told: str = "",
    persona: str = "",
    acted: "Callable[[], Words | PlannedCall] | None" = None,
) -> ResponsePlan:
    """The response to what was last said, written, or given by a tool; text alone unless it `speaks`.

    `told` are its own instructions, `persona` the session's. `acted` gives what an actor makes of it, in place of the
    words that say what came in.
    """
    text, pcm, written, after_tool = "hello", b"", "", False
    match follows(items):
        case FunctionOutput() | McpCall() as item:
            text = f"the function gave: {(item.output or '')[:_LONGEST_QUOTE]}"
            after_tool = True
        case Message(role="assistant") as item:
            so_far = " ".join(part.text or "" for part in item.parts)
            text = f"going on after: {so_far[-_LONGEST_TAIL:]}"
        case Message() as item:
            pcm, written = item.pcm, item.typed
            # Speech is answered with itself, byte for byte; text with a quotation.
            text = f"you said {described(pcm)}" if pcm else f"you wrote: {written[:_LONGEST_QUOTE]}"
    text = f"[simulated] {text}" + (f"; told: {told[:_LONGEST_QUOTE]}" if told else "")
    if scripted is not None and (scripted.say is not None or scripted.calls):
        calls = [
            tools.call(call.name, _as_text(call.arguments)) or PlannedCall(call.name, _as_text(call.arguments))
            for call in scripted.calls
        ]
        said = [] if scripted.say is None else [output_message(scripted.say, speaks=speaks)]
        return ResponsePlan([*said, *calls], scripted.status, scripted.reason)
    if scripted is not None:
        return ResponsePlan([output_message(text, pcm, speaks=speaks)], scripted.status, scripted.reason)
    # After a tool's output there are no markers to see, so that a call is not made again for ever.
    calls, status = _marked(written, tools)
    if status == "completed" and not (calls or after_tool):
        answers = bool(written or pcm)
        required = (tools.required() if answers else None) or tools.told(f"{told} {persona}" if answers else told)
        calls = [required] if required is not None else []
    if acted is not None and not calls:
        return ResponsePlan([acted()], status)
    return ResponsePlan(calls or [output_message(text, pcm, speaks=speaks)], status)


def follows(items: Sequence[Item]) -> Message | FunctionOutput | McpCall | None:
    """What a response comes after: a tool's output, the user's message, or an answer that the client put there.

    The last is gone on with, as a model goes on with a turn of its own that was cut.
    """
    for item in reversed(items):
        if isinstance(item, FunctionOutput | McpCall):
            return item
        if isinstance(item, Message) and (item.role == "user" or (item.role == "assistant" and item.given)):
            return item
    return None


def output_message(text: str, pcm: bytes = b"", *, speaks: bool) -> Words:
    """Words in the given voice, or over a tone that is as long as they are."""
    if not speaks:
        return Words(text)
    tone_ms = min(max(len(text.split(" ")) * _TONE_A_WORD_MS, _SHORTEST_TONE_MS), _LONGEST_TONE_MS)
    return Words(text, pcm or tone(tone_ms))


def _marked(text: str, tools: Tools) -> tuple[list[PlannedCall], EndStatus]:
    """The calls and the end that the markers in a text ask for. A marker of an unknown tool is just text."""
    calls: list[PlannedCall] = []
    status: EndStatus = "completed"
    # Only typed text is looked at: what a user says is not known, since speech is not recognised.
    for marker in _MARKER.finditer(text):
        if marker["end"]:
            status = "failed" if marker["end"] == "fail" else "incomplete"
            continue
        rest, arguments = text[marker.end() :].lstrip(), None
        if rest.startswith("{"):
            try:
                _, length = json.JSONDecoder().raw_decode(rest)
            except ValueError:
                continue
            arguments, rest = rest[:length], rest[length:]
        call = tools.call(marker["name"], arguments) if rest.lstrip().startswith("]") else None
        calls += [call] if call is not None else []
    return calls, status


def _made_up(parameters: Any) -> str:
    """Arguments that a function's JSON schema allows, as far as its plain types say."""
    # Nobody checks a schema: a client may send anything as one, and Azure takes it.
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    made: dict[str, JsonValue] = {}
    for name, schema in properties.items() if isinstance(properties, dict) else ():
        allowed = schema.get("enum") if isinstance(schema, dict) else None
        if isinstance(allowed, list) and allowed:
            made[name] = allowed[0]
        else:
            made[name] = _MADE_UP.get(
                str(schema.get("type")) if isinstance(schema, dict) else "", _EXAMPLES.get(name, "simulated")
            )
    # Compact, as models write them.
    return json.dumps(made, separators=(",", ":"))


def _as_text(arguments: dict[str, JsonValue] | str) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
