"""The settings of sessions and responses in either dialect, one row a setting. Pure.

GA nests them (`audio.input.turn_detection`), preview and Voice Live have them flat (azure-facts.md §4). What stands in
no row is no setting that the dialect knows: the rows are those of `openai.types.realtime` and of
`azure.ai.voicelive.models`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from strategies.base import Dialect
from token_broker.relay import dialect_values as values
from token_broker.relay.dialect_values import LEFT_OUT

__all__ = ["response_object", "response_settings", "session_object", "session_settings"]

Fields = Mapping[str, Any]
Tell = Callable[[Any, Dialect], Any]


def session_settings(session: Fields, *, door: Dialect, upstream: Dialect) -> dict[str, Any]:
    """The session of a client's `session.update`, with what the upstream knows of it and nothing else."""
    shaped = _shaped(session, _SESSION, door, upstream)
    return {"type": "realtime", **shaped} if upstream == "ga" else shaped


def response_settings(response: Fields, *, door: Dialect, upstream: Dialect) -> dict[str, Any]:
    """The response of a client's `response.create`, with what the upstream knows of it and nothing else."""
    return _shaped(response, _RESPONSE, door, upstream)


def session_object(session: Fields, *, door: Dialect, upstream: Dialect) -> dict[str, Any]:
    """Azure's session as the door's dialect has it. What is no setting (`id`, `expires_at`) stays."""
    stated = {**_rest(session, _SESSION, upstream), **_shaped(session, _SESSION, upstream, door)}
    stated.pop("type", None)
    return {"type": "realtime", **stated} if door == "ga" else stated


def response_object(response: Fields, *, door: Dialect, upstream: Dialect) -> dict[str, Any]:
    """Azure's response as the door's dialect has it. What is no setting (`id`, `status`, `output`, `usage`) stays."""
    return {**_rest(response, _RESPONSE, upstream), **_shaped(response, _RESPONSE, upstream, door)}


def _same(value: Any, _dialect: Dialect) -> Any:
    return value


def _never(_value: Any, _dialect: Dialect) -> Any:
    """OpenAI's own: Azure does not know it."""
    return LEFT_OUT


@dataclass(frozen=True, slots=True)
class _Setting:
    """Where a setting stands in each dialect (None: nowhere), and how its value is told there."""

    ga: tuple[str, ...] | None
    preview: tuple[str, ...] | None
    tell: Tell
    nullable: bool
    """Whether null switches something off; elsewhere it says nothing, and is left out."""

    def path(self, dialect: Dialect) -> tuple[str, ...] | None:
        return self.ga if dialect == "ga" else self.preview

    def told(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None if self.nullable else LEFT_OUT
        return self.tell(value, dialect)


def _setting(ga: str | None, preview: str | None, tell: Tell = _same, *, nullable: bool = False) -> _Setting:
    return _Setting(tuple(ga.split(".")) if ga else None, (preview,) if preview else None, tell, nullable)


_COMMON = (
    _setting("instructions", "instructions"),
    _setting("output_modalities", "modalities", values.modalities),
    _setting("audio.output.format", "output_audio_format", values.audio_format),
    _setting("audio.output.voice", "voice", values.voice),
    _setting("reasoning.effort", "reasoning_effort", values.reasoning_effort),
    _setting("tools", "tools", values.tools),
    _setting("tool_choice", "tool_choice", values.tool_choice),
    _setting("prompt", None, nullable=True),
    _setting(None, "temperature"),
    _setting(None, "interim_response", nullable=True),
)
_SESSION = (
    *_COMMON,
    _setting("model", "model"),
    _setting("audio.input.format", "input_audio_format", values.input_format),
    _setting("audio.input.format", "input_audio_sampling_rate", values.input_rate_hz),
    _setting("audio.input.noise_reduction", "input_audio_noise_reduction", values.noise_reduction, nullable=True),
    _setting("audio.input.transcription", "input_audio_transcription", values.transcription, nullable=True),
    _setting("audio.input.turn_detection", "turn_detection", values.turn_detection, nullable=True),
    _setting("audio.output.speed", None),
    _setting("max_output_tokens", "max_response_output_tokens"),
    _setting("parallel_tool_calls", "parallel_tool_calls"),
    _setting("include", "include", values.includes),
    _setting("tracing", None, _never),
    _setting("truncation", None),
    _setting(None, "input_audio_echo_cancellation", nullable=True),
    _setting(None, "output_audio_timestamp_types"),
    _setting(None, "animation"),
    _setting(None, "avatar"),
    _setting(None, "metadata"),
)
_RESPONSE = (
    *_COMMON,
    _setting("max_output_tokens", "max_output_tokens"),
    _setting("metadata", "metadata", nullable=True),
    _setting("conversation", "conversation"),
    _setting("input", "input_items", values.items),
    _setting("parallel_tool_calls", None),
    _setting(None, "max_response_output_tokens"),
    _setting(None, "append_input_items", values.items),
    _setting(None, "pre_generated_assistant_message"),
    _setting(None, "commit"),
    _setting(None, "cancel_previous"),
    _setting(None, "invoke_input"),
)


def _shaped(said: Fields, settings: tuple[_Setting, ...], source: Dialect, target: Dialect) -> dict[str, Any]:
    if source == "preview":
        said = _said_once(said, target)
    shaped: dict[str, Any] = {}
    for setting in settings:
        source_path, target_path = setting.path(source), setting.path(target)
        if source_path is None or target_path is None or (value := _at(said, source_path)) is LEFT_OUT:
            continue
        if (told := setting.told(value, target)) is not LEFT_OUT:
            _put(shaped, target_path, told)
    return shaped


def _said_once(said: Fields, target: Dialect) -> Fields:
    """Flat settings, with what has two names or stands in two fields put where the rows look for it."""
    said = {"input_items": said["input"], **said} if "input" in said else said
    if target == "preview":
        return said
    rate_hz = said.get("input_audio_sampling_rate")
    if isinstance(rate_hz, int) and said.get("input_audio_format", "pcm16") == "pcm16":
        said = {**said, "input_audio_format": {"type": "audio/pcm", "rate": rate_hz}}
    if "max_response_output_tokens" in said:
        said = {"max_output_tokens": said["max_response_output_tokens"], **said}
    return {"conversation": "none", **said} if said.get("commit") is False else said


def _rest(stated: Fields, settings: tuple[_Setting, ...], source: Dialect) -> dict[str, Any]:
    names = {path[0] for setting in settings if (path := setting.path(source)) is not None}
    return {name: value for name, value in stated.items() if name not in names}


def _at(said: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(said, dict) or name not in said:
            return LEFT_OUT
        said = said[name]
    return said


def _put(shaped: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        shaped = shaped.setdefault(name, {})
    shaped[path[-1]] = value
