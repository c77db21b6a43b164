"""GA, preview and Voice Live: one talk in three shapes (docs/azure.md §4.1, §4.5).

The talk itself uses GA's event names and knows no shapes. A `Dialect` renames and reshapes what goes out, and reads
from a session what the talk needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from token_broker.simulator.audio import SAMPLE_RATE_HZ
from token_broker.simulator.realtime.conversation import (
    FunctionCall,
    FunctionOutput,
    Item,
    McpApproval,
    McpApprovalRequest,
    McpCall,
    McpToolList,
    Message,
    Part,
)
from token_broker.simulator.realtime.speech.vad import VadSettings
from token_broker.simulator.realtime.speech.wire_audio import AudioFormat
from token_broker.simulator.session_bodies import flat_session, ga_session, voice_live_session
from token_broker.simulator.session_bodies.check import Strict, check
from token_broker.simulator.session_bodies.response_create import FlatResponse, GaResponse, VoiceLiveResponse

DialectName = Literal["ga", "preview", "voice_live"]
AnySession = ga_session.RealtimeSession | flat_session.FlatSession | voice_live_session.VoiceLiveSession

_PREVIEW_NAMES: dict[str, str | None] = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "conversation.item.added": "conversation.item.created",
    "conversation.item.done": None,
}


@dataclass(frozen=True, slots=True)
class TalkSettings:
    """What the talk needs of its session."""

    speaks: bool
    """Whether answers are audio, or text alone."""
    voice: JsonValue
    detection: VadSettings | None
    transcription_model: str | None
    transcribes: bool
    tools: list[dict[str, Any]]
    tool_choice: Any
    instructions: str
    input_format: AudioFormat
    output_format: AudioFormat
    tells_visemes: bool = False
    tells_word_times: bool = False


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """How one response is asked for, the session's settings included."""

    speaks: bool
    voice: JsonValue
    tools: list[dict[str, Any]]
    tool_choice: Any
    output_format: AudioFormat
    instructions: str | None = None
    """Its own, where it was given any."""
    input: list[Any] | None = None
    in_conversation: bool = True
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """One shape of the API."""

    name: DialectName
    session_model: type[AnySession]
    response_model: type[Strict]
    read_options: Callable[[Any, TalkSettings], ResponseOptions]
    settings: Callable[[Any], TalkSettings]
    session_object: Callable[[Any, str], dict[str, Any]]
    nested: Mapping[str, Any]
    """Session fields whose own fields an update changes one by one; every other is replaced whole."""
    names: Mapping[str, str | None]
    text_part: str
    audio_part: str
    """Types of an assistant message's parts."""
    voice_param: str
    """Where a session or a response has its voice."""
    obfuscates: bool = False
    """Whether deltas of text carry an `obfuscation`."""

    def wire_name(self, name: str) -> str | None:
        """The dialect's name of an event; None where it has no such event."""
        return self.names.get(name, name)

    def content_types(self, role: str) -> frozenset[str]:
        """The types of parts that a message of this role may have."""
        if role == "assistant":
            # Voice Live takes GA's name for it too, as its clients that speak to both APIs send it.
            also = {"output_text"} if self.name == "voice_live" else set()
            return frozenset({self.text_part, self.audio_part} | also)
        return frozenset({"input_text", "input_audio", "input_image"} if role == "user" else {"input_text"})

    def updated(self, session: Any, patch: Mapping[str, Any]) -> Any:
        """The session with a checked patch (a dump of what was set) put into it."""
        # Through JSON, so that the result is checked as a whole: a patch may fit and its result may not.
        merged = _merge(session.model_dump(mode="json"), patch, self.nested)
        return self.session_model.model_validate(merged)

    def response_options(self, response: Mapping[str, Any], session: Any) -> ResponseOptions:
        """What a `response.create` asks for, the session's settings where it says nothing.

        Raises:
            InvalidRequest: it has fields that the dialect does not know.

        """
        return self.read_options(check(self.response_model, response, "response"), self.settings(session))

    def states_done(self, item: Item) -> bool:
        """Whether the dialect tells that an item is complete: Voice Live does so for the user's audio alone."""
        if self.name != "voice_live":
            return True
        return isinstance(item, Message) and item.role == "user" and any(part.kind == "audio" for part in item.parts)

    def item_object(self, item: Item) -> dict[str, Any]:
        """An item as it stands in events."""
        # GA's items have no `object`, against OpenAI's own documentation.
        stated: dict[str, Any] = {"id": item.id} if self.name == "ga" else {"id": item.id, "object": "realtime.item"}
        match item:
            case Message():
                parts = [self.part_object(part, item.role) for part in item.parts]
                return stated | {"type": "message", "status": item.status, "role": item.role, "content": parts}
            case FunctionCall():
                called = {"name": item.name, "call_id": item.call_id, "arguments": item.arguments}
                return stated | {"type": "function_call", "status": item.status} | called
            case FunctionOutput():
                return stated | {"type": "function_call_output", "call_id": item.call_id, "output": item.output}
            case McpToolList():
                return stated | {"type": "mcp_list_tools", "server_label": item.server_label, "tools": item.tools}
            case McpCall():
                called = {"server_label": item.server_label, "name": item.name, "arguments": item.arguments}
                result = {"approval_request_id": item.approval_request_id, "output": item.output, "error": None}
                return stated | {"type": "mcp_call"} | called | result
            case McpApprovalRequest():
                called = {"server_label": item.server_label, "name": item.name, "arguments": item.arguments}
                return stated | {"type": "mcp_approval_request"} | called
            case McpApproval():
                decided = {"approval_request_id": item.approval_request_id, "approve": item.approve}
                return stated | {"type": "mcp_approval_response"} | decided | {"reason": item.reason}

    def part_object(self, part: Part, role: str) -> dict[str, Any]:
        if role == "assistant":
            if part.kind == "text":
                return {"type": self.text_part, "text": part.text or ""}
            return {"type": self.audio_part, "transcript": part.text or ""}
        # Null, not absent: official clients throw where a user's audio has no transcript (docs/azure.md §4.4).
        if part.kind == "audio":
            return {"type": "input_audio", "transcript": part.text}
        return {"type": "input_text", "text": part.text}

    def content_part(self, part: Part, *, done: bool) -> dict[str, Any]:
        """The fields of `response.content_part.*` that state a part: under the same types in every dialect."""
        if part.kind == "audio":
            stated = {"type": "audio", "transcript": part.text or ""}
        else:
            # Voice Live's finished text parts are recorded empty; the text stands in the events around them.
            stated = {"type": "text", "text": "" if done and self.name == "voice_live" else part.text or ""}
        return {"part": stated, "content": stated} if self.name == "ga" else {"part": stated}

    def response_object(self, session: Any, stated: Mapping[str, Any], *, speaks: bool) -> dict[str, Any]:
        """A response as it stands in events: `stated` is what all dialects have."""
        if self.name == "ga":
            output = session.audio.output
            audio = {"output": {"format": output.format.model_dump(), "voice": output.model_dump()["voice"]}}
            own: dict[str, Any] = {"output_modalities": ["audio" if speaks else "text"], "audio": audio}
            own["max_output_tokens"] = session.max_output_tokens
        else:
            dumped = session.model_dump(mode="json")
            own = {name: dumped[name] for name in ("voice", "output_audio_format", "temperature")}
            own |= {"modalities": ["text", "audio"] if speaks else ["text"]}
            own["max_output_tokens"] = dumped["max_response_output_tokens"]
        if self.name == "voice_live":
            own["voice"] = {name: value for name, value in own["voice"].items() if value is not None}
        return {"object": "realtime.response", **stated, **own}


def dumped_tools(tools: Sequence[Strict]) -> list[dict[str, Any]]:
    """Tools as JSON, without the fields that say nothing."""
    return [tool.model_dump(mode="json", exclude_none=True) for tool in tools]


def _ga_options(asked: GaResponse, settings: TalkSettings) -> ResponseOptions:
    output = asked.audio.output if asked.audio else None
    return ResponseOptions(
        speaks="audio" in asked.output_modalities if asked.output_modalities else settings.speaks,
        voice=output.model_dump()["voice"] if output and output.voice else settings.voice,
        tools=settings.tools if asked.tools is None else dumped_tools(asked.tools),
        tool_choice=asked.tool_choice or settings.tool_choice,
        output_format=AudioFormat.named(output.format.type) if output and output.format else settings.output_format,
        instructions=asked.instructions,
        input=asked.input,
        in_conversation=asked.conversation != "none",
        metadata=asked.metadata,
    )


def _flat_options(asked: FlatResponse, settings: TalkSettings) -> ResponseOptions:
    return ResponseOptions(
        speaks="audio" in asked.modalities if asked.modalities else settings.speaks,
        voice=asked.voice or settings.voice,
        tools=settings.tools if asked.tools is None else dumped_tools(asked.tools),
        tool_choice=asked.tool_choice or settings.tool_choice,
        output_format=AudioFormat.named(asked.output_audio_format)
        if asked.output_audio_format
        else settings.output_format,
        instructions=asked.instructions,
        input=asked.input or getattr(asked, "input_items", None),
        in_conversation=asked.conversation != "none",
        metadata=asked.metadata,
    )


def _merge(base: dict[str, Any], patch: Mapping[str, Any], nested: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in patch.items():
        merged[name] = _merge(base[name], value, nested[name]) if name in nested else value
    return merged


def _detection(turns: Any) -> VadSettings | None:
    """The detection that is set, by the fields that every kind shares with server VAD."""
    if turns is None:
        return None
    fields = ("threshold", "prefix_padding_ms", "silence_duration_ms", "create_response", "interrupt_response")
    return VadSettings(**{name: getattr(turns, name) for name in fields if hasattr(turns, name)})


def _ga_settings(session: ga_session.RealtimeSession) -> TalkSettings:
    transcription = session.audio.input.transcription
    return TalkSettings(
        speaks="audio" in session.output_modalities,
        voice=session.audio.output.model_dump()["voice"],
        detection=_detection(session.audio.input.turn_detection),
        transcription_model=transcription.model if transcription else None,
        transcribes=transcription is not None,
        tools=dumped_tools(session.tools),
        tool_choice=session.tool_choice,
        instructions=session.instructions,
        input_format=AudioFormat.named(session.audio.input.format.type),
        output_format=AudioFormat.named(session.audio.output.format.type),
    )


def _flat_settings(session: flat_session.FlatSession | voice_live_session.VoiceLiveSession) -> TalkSettings:
    transcription = session.input_audio_transcription
    return TalkSettings(
        speaks="audio" in session.modalities,
        voice=session.model_dump(mode="json")["voice"],
        detection=_detection(session.turn_detection),
        transcription_model=transcription.model if transcription else None,
        transcribes=transcription is not None,
        tools=dumped_tools(session.tools),
        tool_choice=session.tool_choice,
        instructions=session.instructions,
        # Only Voice Live names a rate.
        input_format=AudioFormat.named(
            session.input_audio_format, getattr(session, "input_audio_sampling_rate", SAMPLE_RATE_HZ)
        ),
        output_format=AudioFormat.named(session.output_audio_format),
        tells_visemes="viseme_id" in ((getattr(session, "animation", None) or {}).get("outputs") or []),
        tells_word_times=bool(getattr(session, "output_audio_timestamp_types", None)),
    )


GA = Dialect(
    name="ga",
    session_model=ga_session.RealtimeSession,
    response_model=GaResponse,
    read_options=_ga_options,
    settings=_ga_settings,
    session_object=ga_session.session_object,
    nested={"audio": {"input": {}, "output": {}}},
    names={"rate_limits.updated": None},
    text_part="output_text",
    audio_part="output_audio",
    voice_param="audio.output.voice",
    obfuscates=True,
)
PREVIEW = Dialect(
    name="preview",
    session_model=flat_session.FlatSession,
    response_model=FlatResponse,
    read_options=_flat_options,
    settings=_flat_settings,
    session_object=flat_session.session_object,
    nested={},
    names=_PREVIEW_NAMES,
    text_part="text",
    audio_part="audio",
    voice_param="voice",
)
VOICE_LIVE = Dialect(
    name="voice_live",
    session_model=voice_live_session.VoiceLiveSession,
    response_model=VoiceLiveResponse,
    read_options=_flat_options,
    settings=_flat_settings,
    session_object=voice_live_session.session_object,
    nested={},
    names=_PREVIEW_NAMES | {"rate_limits.updated": None, "conversation.item.done": "conversation.item.done"},
    text_part="text",
    audio_part="audio",
    voice_param="voice",
)
