"""The settings of sessions and responses in either dialect, one row a setting. Pure.

GA nests them (`audio.input.turn_detection`), preview and Voice Live have them flat (docs/azure.md §4.3). What stands in
no row is no setting that the dialect knows: the rows are those of `openai.types.realtime` and of
`azure.ai.voicelive.models`.

A row also says what a client has to do with the setting, on the proxy and on the compatible endpoints alike: `client`
is the shape in which a client may say it (without one it is the agent's own), and `shown` whether a client may see it.
Both are allowlists: a new row is neither, until somebody decides that it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strategies.base import Dialect
from token_broker.relay.dialects import values
from token_broker.relay.dialects.client_values import (
    AUDIO_FORMAT,
    INPUTS,
    MAX_TOKENS,
    MODALITIES,
    NOISE_REDUCTION,
    TURN_DETECTION,
)
from token_broker.relay.dialects.shapes import Fields as FieldsShape
from token_broker.relay.dialects.shapes import Flag, Labels, Number, Shape, Word
from token_broker.relay.dialects.values import LEFT_OUT

__all__ = [
    "CLIENT_RESPONSE",
    "CLIENT_SESSION",
    "response_object",
    "response_settings",
    "session_object",
    "session_settings",
    "shown_response",
    "shown_session",
]

Fields = Mapping[str, Any]
Tell = Callable[[Any, Dialect], Any]


def session_settings(session: Fields, *, compat: Dialect, upstream: Dialect) -> dict[str, Any]:
    """The session of a client's `session.update`, with what the upstream knows of it and nothing else."""
    shaped = _shaped(session, _SESSION, compat, upstream)
    return {"type": "realtime", **shaped} if upstream == "ga" else shaped


def response_settings(response: Fields, *, compat: Dialect, upstream: Dialect) -> dict[str, Any]:
    """The response of a client's `response.create`, with what the upstream knows of it and nothing else."""
    return _shaped(response, _RESPONSE, compat, upstream)


def session_object(session: Fields, *, compat: Dialect, upstream: Dialect) -> dict[str, Any]:
    """Azure's session as the compatible endpoint's dialect has it. What is no setting (`id`, `expires_at`) stays."""
    stated = {**_rest(session, _SESSION, upstream), **_shaped(session, _SESSION, upstream, compat)}
    stated.pop("type", None)
    return {"type": "realtime", **stated} if compat == "ga" else stated


def response_object(response: Fields, *, compat: Dialect, upstream: Dialect) -> dict[str, Any]:
    """Azure's response in the client's dialect. What is no setting (`id`, `status`, `output`, `usage`) stays."""
    return {**_rest(response, _RESPONSE, upstream), **_shaped(response, _RESPONSE, upstream, compat)}


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
    client: Shape | None
    """In which shape a client may say it; None: it is the agent's own, and taken out of what a client says."""
    shown: bool
    """Whether a client may see it in Azure's events."""

    def path(self, dialect: Dialect) -> tuple[str, ...] | None:
        return self.ga if dialect == "ga" else self.preview

    def told(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None if self.nullable else LEFT_OUT
        return self.tell(value, dialect)


def _setting(
    ga: str | None,
    preview: str | None,
    tell: Tell = _same,
    *,
    nullable: bool = False,
    client: Shape | None = None,
    shown: bool = False,
) -> _Setting:
    nested = tuple(ga.split(".")) if ga else None
    return _Setting(nested, (preview,) if preview else None, tell, nullable, client, shown)


_COMMON = (
    _setting("instructions", "instructions"),
    _setting("output_modalities", "modalities", values.modalities, client=MODALITIES, shown=True),
    _setting("audio.output.format", "output_audio_format", values.audio_format, client=AUDIO_FORMAT, shown=True),
    _setting("reasoning.effort", "reasoning_effort", values.reasoning_effort),
    _setting("tools", "tools", values.tools),
    _setting("tool_choice", "tool_choice", values.tool_choice),
    _setting("prompt", None, nullable=True),
    _setting(None, "temperature", shown=True),
    _setting(None, "interim_response", nullable=True),
)
_SESSION = (
    *_COMMON,
    _setting("model", "model", shown=True),
    _setting("audio.output.voice", "voice", values.voice),
    _setting("audio.input.format", "input_audio_format", values.input_format, client=AUDIO_FORMAT, shown=True),
    _setting("audio.input.format", "input_audio_sampling_rate", values.input_rate_hz, client=Number(), shown=True),
    _setting(
        "audio.input.noise_reduction",
        "input_audio_noise_reduction",
        values.noise_reduction,
        nullable=True,
        client=NOISE_REDUCTION,
        shown=True,
    ),
    _setting("audio.input.transcription", "input_audio_transcription", values.transcription, nullable=True),
    _setting(
        "audio.input.turn_detection",
        "turn_detection",
        values.turn_detection,
        nullable=True,
        client=TURN_DETECTION,
        shown=True,
    ),
    _setting("audio.output.speed", None, client=Number(), shown=True),
    _setting("max_output_tokens", "max_response_output_tokens", client=MAX_TOKENS, shown=True),
    _setting("parallel_tool_calls", "parallel_tool_calls"),
    _setting("include", "include", values.includes, shown=True),
    _setting("tracing", None, _never),
    _setting("truncation", None, shown=True),
    _setting(None, "input_audio_echo_cancellation", nullable=True, shown=True),
    _setting(None, "output_audio_timestamp_types", shown=True),
    _setting(None, "animation", shown=True),
    _setting(None, "avatar", shown=True),  # its ICE servers are the client's to connect to
    _setting(None, "metadata"),
)
_RESPONSE = (
    *_COMMON,
    _setting("audio.output.voice", "voice", values.voice, shown=True),
    _setting("max_output_tokens", "max_output_tokens", client=MAX_TOKENS, shown=True),
    _setting("metadata", "metadata", nullable=True, client=Labels(), shown=True),
    _setting("conversation", "conversation", client=Word(("auto", "none")), shown=True),
    _setting("input", "input_items", values.items, client=INPUTS),
    _setting("parallel_tool_calls", None),
    _setting(None, "max_response_output_tokens", client=MAX_TOKENS, shown=True),
    _setting(None, "append_input_items", values.items, client=INPUTS),
    _setting(None, "pre_generated_assistant_message"),
    _setting(None, "commit", client=Flag()),
    _setting(None, "cancel_previous", client=Flag()),
    _setting(None, "invoke_input"),
)

# Of Azure's session and response, what is no setting and a client may see.
_SESSION_FACTS = ("id", "object", "type", "expires_at")
_RESPONSE_FACTS = ("id", "object", "status", "status_details", "output", "conversation_id", "usage")

Tree = dict[str, Any]
"""Names, each with the tree of what is permitted within it; None where all of it is."""


def _paths(setting: _Setting) -> list[tuple[str, ...]]:
    return [path for path in (setting.ga, setting.preview) if path is not None]


def _client_shape(settings: Sequence[_Setting], **more: Shape) -> FieldsShape:
    """What a client may say of these settings, in either dialect: whoever speaks the wrong one is told so by Azure."""
    rows: Tree = dict(more)
    for setting in settings:
        if setting.client is not None:
            for path in _paths(setting):
                if _at(rows, path) is LEFT_OUT:  # of two rows that share GA's path, the first says what stands there
                    _put(rows, path, setting.client)
    return _as_fields(rows)


def _as_fields(rows: Tree) -> FieldsShape:
    return FieldsShape({name: _as_fields(row) if isinstance(row, dict) else row for name, row in rows.items()})


def _shown_tree(settings: Sequence[_Setting], facts: Sequence[str]) -> Tree:
    tree: Tree = dict.fromkeys(facts)
    for setting in settings:
        if setting.shown:
            for path in _paths(setting):
                _put(tree, path, None)
    return tree


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


CLIENT_SESSION = _client_shape(_SESSION, type=Word(("realtime",)))
"""What a client may say in `session.update`."""
CLIENT_RESPONSE = _client_shape(_RESPONSE)
"""What a client may say in `response.create`."""
_SHOWN_SESSION = _shown_tree(_SESSION, _SESSION_FACTS)
_SHOWN_RESPONSE = _shown_tree(_RESPONSE, _RESPONSE_FACTS)


def shown_session(session: Fields) -> Fields:
    """Azure's session, in either dialect, as a client may see it; the same object where nothing is hidden."""
    return _shown(session, _SHOWN_SESSION)


def shown_response(response: Fields) -> Fields:
    """Azure's response, in either dialect, as a client may see it; the same object where nothing is hidden."""
    return _shown(response, _SHOWN_RESPONSE)


def _shown(stated: Fields, tree: Tree) -> Fields:
    kept: dict[str, Any] = {}
    whole = True
    for name, value in stated.items():
        if name not in tree:
            whole = False
        elif (inner := tree[name]) is None or value is None:
            kept[name] = value
        elif isinstance(value, dict):
            kept[name] = _shown(value, inner)
            whole = whole and kept[name] is value
        else:
            whole = False
    return stated if whole else kept
