"""Values of settings, each converted to one dialect from either of the two. Pure.

A value of an unknown shape passes unchanged: Azure's error about it tells the client more than silence would. A
well-formed value that the dialect cannot express becomes `LEFT_OUT`, which is not an error.
"""

from collections.abc import Mapping
from typing import Any

from strategies.session_model.agent_settings import LEFT_OUT, Dialect

__all__ = [
    "LEFT_OUT",
    "audio_format",
    "includes",
    "input_format",
    "input_rate_hz",
    "modalities",
    "noise_reduction",
    "reasoning_effort",
    "tool_choice",
    "tools",
    "transcription",
    "turn_detection",
    "voice",
    "without_nulls",
]

_PCM_RATE_HZ = 24_000
_G711_RATE_HZ = 8_000
_GA_FORMATS: dict[str, dict[str, Any]] = {
    "pcm16": {"type": "audio/pcm", "rate": _PCM_RATE_HZ},
    "pcm16_16000hz": {"type": "audio/pcm", "rate": 16_000},
    "pcm16_8000hz": {"type": "audio/pcm", "rate": 8_000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}
_PREVIEW_FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}

# The fields of each kind of turn detection, from both SDKs. A field that the kind lacks makes Azure refuse
# the whole `session.update`, so the others are left out.
_ANY_VAD = ("type", "create_response", "interrupt_response")
_LOUDNESS_VAD = (*_ANY_VAD, "threshold", "prefix_padding_ms", "silence_duration_ms")
_AZURE_VAD = (*_LOUDNESS_VAD, "end_of_utterance_detection", "auto_truncate")
_AZURE_SEMANTIC_VAD = (*_AZURE_VAD, "speech_duration_ms", "remove_filler_words")
_VADS: dict[Dialect, dict[str, tuple[str, ...]]] = {
    "ga": {
        "server_vad": (*_LOUDNESS_VAD, "idle_timeout_ms"),
        "semantic_vad": (*_ANY_VAD, "eagerness"),
    },
    "preview": {
        "server_vad": _AZURE_VAD,
        "azure_semantic_vad": (*_AZURE_SEMANTIC_VAD, "languages"),
        "azure_semantic_vad_en": _AZURE_SEMANTIC_VAD,
        "azure_semantic_vad_multilingual": (*_AZURE_SEMANTIC_VAD, "languages"),
    },
}
_VAD_NAMES: dict[Dialect, dict[str, str]] = {
    "ga": {name: "semantic_vad" for name in _VADS["preview"] if name != "server_vad"},
    "preview": {"semantic_vad": "azure_semantic_vad"},
}

_TRANSCRIPTION: dict[Dialect, tuple[str, ...]] = {
    "ga": ("model", "language", "prompt", "delay", "keywords", "languages"),
    "preview": ("model", "language", "prompt", "custom_speech", "phrase_list"),
}
_LOGPROBS = "item.input_audio_transcription.logprobs"
_INCLUDES: dict[Dialect, tuple[str, ...]] = {
    "ga": (_LOGPROBS,),
    "preview": (_LOGPROBS, "item.input_audio_transcription.phrases", "file_search_call.results"),
}

_FUNCTION = ("type", "name", "description", "parameters")
_MCP = (
    "type", "server_label", "server_url", "authorization", "headers", "allowed_tools", "require_approval",
)  # fmt: skip
_GA_MCP = (*_MCP, "allowed_callers", "connector_id", "defer_loading", "server_description", "tunnel_id")
_CHOICES = frozenset({"auto", "none", "required"})


def without_nulls(value: Any) -> Any:
    """An object without fields that are null, at every depth: what is null in one dialect has no counterpart.

    Azure's echo of a session has null for each hint that was not given, and a client's parser may refuse null under the
    other dialect's name.
    """
    if not isinstance(value, dict):
        return value
    return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}


def audio_format(value: Any, dialect: Dialect) -> Any:
    """GA's object or the flat name. A rate that GA lacks is kept: GA refuses it, and misreads no audio."""
    if isinstance(value, str):
        if value not in _GA_FORMATS:
            return LEFT_OUT
        return dict(_GA_FORMATS[value]) if dialect == "ga" else value
    if not isinstance(value, dict) or not isinstance(kind := value.get("type"), str):
        return value
    if kind not in _PREVIEW_FORMATS:
        return LEFT_OUT
    if dialect == "ga":
        return _only(value, ("type", "rate"))
    slower = f"pcm16_{value.get('rate')}hz"
    return slower if kind == "audio/pcm" and slower in _GA_FORMATS else _PREVIEW_FORMATS[kind]


def input_format(value: Any, dialect: Dialect) -> Any:
    """As `audio_format`, but the flat name has no rate: that is `input_rate_hz`'s."""
    converted = audio_format(value, dialect)
    return "pcm16" if isinstance(converted, str) and converted.startswith("pcm16") else converted


def input_rate_hz(value: Any, dialect: Dialect) -> Any:
    """Preview's `input_audio_sampling_rate`; in GA the rate is part of the format, and there is no such field."""
    if dialect == "ga":
        return LEFT_OUT
    if isinstance(value, dict):
        if value.get("type") == "audio/pcm":
            return value.get("rate") or _PCM_RATE_HZ
        return _G711_RATE_HZ if value.get("type") in ("audio/pcmu", "audio/pcma") else LEFT_OUT
    return LEFT_OUT if isinstance(value, str) else value


def modalities(value: Any, dialect: Dialect) -> Any:
    """GA accepts one modality, where audio includes its transcript; Voice Live refuses audio alone."""
    if not isinstance(value, list):
        return value
    if dialect == "preview":
        return ["text", "audio"] if value == ["audio"] else value
    if not value:
        return LEFT_OUT
    return ["text"] if all(modality == "text" for modality in value) else ["audio"]


def voice(value: Any, dialect: Dialect) -> Any:
    """A name in both; or an object, with an id in GA, with type and name in Voice Live."""
    if not isinstance(value, dict):
        return value
    if dialect == "preview":
        return value if "type" in value else LEFT_OUT
    return value if "id" in value else value.get("name", LEFT_OUT)


def turn_detection(value: Any, dialect: Dialect) -> Any:
    """The two kinds of semantic detection share only `create_response` and `interrupt_response`."""
    if not isinstance(value, dict) or not isinstance(kind := value.get("type"), str):
        return value
    kind = _VAD_NAMES[dialect].get(kind, kind)
    known = _VADS[dialect].get(kind)
    return LEFT_OUT if known is None else _only({**value, "type": kind}, known)


def noise_reduction(value: Any, dialect: Dialect) -> Any:
    """Voice Live has GA's two kinds and a deep one, for which GA gets the nearest, `near_field`."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    deep = kind == "azure_deep_noise_suppression"
    if not deep and kind not in ("near_field", "far_field"):
        return LEFT_OUT
    if dialect == "preview":
        return _only(value, ("type",))
    return _only({**value, "type": "near_field" if deep else kind}, ("type", "strength"))


def transcription(value: Any, dialect: Dialect) -> Any:
    """GA's `keywords` correspond to Voice Live's `phrase_list`."""
    if not isinstance(value, dict):
        return value
    name, other = ("keywords", "phrase_list") if dialect == "ga" else ("phrase_list", "keywords")
    hinted = {name: value[other], **value} if other in value else value
    return _only(hinted, _TRANSCRIPTION[dialect])


def includes(value: Any, dialect: Dialect) -> Any:
    """The extra output that was requested, as far as the dialect has it."""
    if not isinstance(value, list):
        return value
    known = [name for name in value if name in _INCLUDES[dialect]]
    return known if known or not value else LEFT_OUT


def reasoning_effort(value: Any, dialect: Dialect) -> Any:
    """GA has no effort `none`."""
    return LEFT_OUT if dialect == "ga" and value == "none" else value


def tools(value: Any, dialect: Dialect) -> Any:
    """Functions are the same in both dialects. GA has more fields for an MCP server, and names tools in objects."""

    def converted(tool: Any) -> Any:
        if not isinstance(tool, dict):
            return tool
        kind = tool.get("type")
        if kind != "mcp":
            return _only(tool, _FUNCTION) if kind == "function" else tool
        approval = tool.get("require_approval")
        if isinstance(approval, dict):
            selected = {when: _tool_names(names, dialect) for when, names in approval.items()}
            tool = {**tool, "require_approval": selected}
        if dialect == "ga":
            return _only(tool, _GA_MCP)
        allowed = tool.get("allowed_tools")
        if isinstance(allowed, dict):
            tool = {**tool, "allowed_tools": _tool_names(allowed, dialect)}
        return _only(tool, _MCP)

    return [converted(tool) for tool in value] if isinstance(value, list) else value


def tool_choice(value: Any, dialect: Dialect) -> Any:
    """Voice Live also accepts a function's bare name or nested object; it has no choice for MCP."""
    if dialect == "preview":
        return LEFT_OUT if isinstance(value, dict) and value.get("type") == "mcp" else value
    if isinstance(value, str):
        return value if value in _CHOICES else {"type": "function", "name": value}
    if isinstance(value, dict) and isinstance(function := value.get("function"), dict):
        return {"type": "function", "name": function.get("name")}
    return value


def _tool_names(names: Any, dialect: Dialect) -> Any:
    """A selection of an MCP server's tools: a list of names in Voice Live, an object with that list in GA."""
    if dialect == "ga":
        return {"tool_names": names} if isinstance(names, list) else names
    return names.get("tool_names") or [] if isinstance(names, dict) else names


def _only(value: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value[name] for name in names if name in value}
