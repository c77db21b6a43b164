"""The settings of sessions and responses in either dialect, one row a setting. Pure.

GA nests them (`audio.input.turn_detection`); preview and Voice Live have them flat (docs/azure.md §4.3). The rows are
the settings of `openai.types.realtime` and of `azure.ai.voicelive.models`; a name without a row is not a setting.

A row also states what a client may do with the setting, on the proxy and on the compatible endpoints alike:
`client_shape` is the shape of the values that a client may set (without one only the agent sets it), `shown` whether a
client may see it. Both are allowlists: a new row grants neither until somebody decides that it does.
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
from token_broker.relay.dialects.conversation_items import items_for, shown_item
from token_broker.relay.dialects.shapes import Fields as FieldsShape
from token_broker.relay.dialects.shapes import Flag, Labels, Number, Shape, Word
from token_broker.relay.dialects.values import LEFT_OUT

__all__ = [
    "CLIENT_RESPONSE",
    "CLIENT_SESSION",
    "RESPONSE_ROWS",
    "SESSION_ROWS",
    "Setting",
    "param_for_client",
    "response_object",
    "response_settings",
    "session_object",
    "session_settings",
    "shown_response",
    "shown_session",
    "value_at",
]

Fields = Mapping[str, Any]
Convert = Callable[[Any, Dialect], Any]


def session_settings(session: Fields, *, client: Dialect, upstream: Dialect) -> dict[str, Any]:
    """The session of a client's `session.update` for the upstream, without settings that the upstream lacks."""
    shaped = _converted(session, SESSION_ROWS, client, upstream)
    return {"type": "realtime", **shaped} if upstream == "ga" else shaped


def response_settings(response: Fields, *, client: Dialect, upstream: Dialect) -> dict[str, Any]:
    """The response of a client's `response.create` for the upstream, without settings that the upstream lacks."""
    return _converted(response, RESPONSE_ROWS, client, upstream)


def session_object(session: Fields, *, client: Dialect, upstream: Dialect) -> dict[str, Any]:
    """Azure's session in the client's dialect. What is not a setting (`id`, `expires_at`) stays."""
    stated = {**_rest(session, SESSION_ROWS, upstream), **_converted(session, SESSION_ROWS, upstream, client)}
    stated.pop("type", None)
    return {"type": "realtime", **stated} if client == "ga" else stated


def response_object(response: Fields, *, client: Dialect, upstream: Dialect) -> dict[str, Any]:
    """Azure's response in the client's dialect. What is not a setting (`id`, `status`, `output`, `usage`) stays."""
    return {**_rest(response, RESPONSE_ROWS, upstream), **_converted(response, RESPONSE_ROWS, upstream, client)}


def param_for_client(param: str, *, client: Dialect, upstream: Dialect) -> str:
    """The path of a setting that Azure names in an error, as the client has it; any other path as it is."""
    holder, *path = param.split(".")
    for row in {"session": SESSION_ROWS, "response": RESPONSE_ROWS}.get(holder, ()):
        own, theirs = row.path(upstream), row.path(client)
        if own is None or theirs is None or tuple(path[: len(own)]) != own:
            continue
        rest = path[len(own) :]
        # A rate is a part of GA's format, and a setting of its own in Voice Live.
        is_rate = row.convert is values.input_rate_hz
        if upstream == "ga" and is_rate != (rest == ["rate"] and own == ("audio", "input", "format")):
            continue
        rest = (["rate"] if client == "ga" else []) if is_rate else rest
        return ".".join((holder, *theirs, *rest))
    return param


def shown_session(session: Fields) -> Fields:
    """Azure's session, in either dialect, as a client may see it; the same object where nothing is hidden."""
    return _shown(session, _SHOWN_SESSION)


def shown_response(response: Fields) -> Fields:
    """Azure's response, in either dialect, as a client may see it; the same object where nothing is hidden."""
    shown = _shown(response, _SHOWN_RESPONSE)
    output = shown.get("output")
    if not isinstance(output, list):
        return shown
    items = [shown_item(item) for item in output]
    same = all(item is stated for item, stated in zip(items, output, strict=True))
    return shown if same else {**shown, "output": items}


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a setting is in each dialect (None: nowhere), and how its value is converted.

    `nullable`: null switches something off; elsewhere null says nothing, and is left out. `client_shape`: the shape in
    which a client may set it; None: only the agent sets it. `shown`: a client may see it in Azure's events.
    """

    ga: tuple[str, ...] | None
    preview: tuple[str, ...] | None
    convert: Convert
    nullable: bool
    client_shape: Shape | None
    shown: bool

    @property
    def paths(self) -> list[tuple[str, ...]]:
        return [path for path in (self.ga, self.preview) if path is not None]

    def path(self, dialect: Dialect) -> tuple[str, ...] | None:
        return self.ga if dialect == "ga" else self.preview

    def converted(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None if self.nullable else LEFT_OUT
        return self.convert(value, dialect)


def _setting(
    ga: str | None,
    preview: str | None,
    convert: Convert = lambda value, _dialect: value,
    *,
    nullable: bool = False,
    client: Shape | None = None,
    shown: bool = False,
) -> Setting:
    nested = tuple(ga.split(".")) if ga else None
    return Setting(nested, (preview,) if preview else None, convert, nullable, client, shown)


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
SESSION_ROWS = (
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
    _setting("tracing", None, lambda *_: LEFT_OUT),  # OpenAI's own: Azure does not have it
    _setting("truncation", None, shown=True),
    _setting(None, "input_audio_echo_cancellation", nullable=True, shown=True),
    _setting(None, "output_audio_timestamp_types", shown=True),
    _setting(None, "animation", shown=True),
    _setting(None, "avatar", shown=True),  # its ICE servers are the client's to connect to
    _setting(None, "metadata"),
)
RESPONSE_ROWS = (
    *_COMMON,
    _setting("audio.output.voice", "voice", values.voice, shown=True),
    _setting("max_output_tokens", "max_output_tokens", client=MAX_TOKENS, shown=True),
    _setting("metadata", "metadata", nullable=True, client=Labels(), shown=True),
    _setting("conversation", "conversation", client=Word(("auto", "none")), shown=True),
    _setting("input", "input_items", items_for, client=INPUTS),
    _setting("parallel_tool_calls", None),
    _setting(None, "max_response_output_tokens", client=MAX_TOKENS, shown=True),
    _setting(None, "append_input_items", items_for, client=INPUTS),
    _setting(None, "pre_generated_assistant_message"),
    _setting(None, "commit", client=Flag()),
    _setting(None, "cancel_previous", client=Flag()),
    _setting(None, "invoke_input"),
)

# What a client may see of Azure's session and response beside the settings.
_SESSION_FACTS = ("id", "object", "type", "expires_at")
_RESPONSE_FACTS = ("id", "object", "status", "status_details", "output", "conversation_id", "usage")

Tree = dict[str, Any]
"""Names, each with the tree of what is permitted within it; None where everything is."""


def _client_fields(settings: Sequence[Setting], **more: Shape) -> FieldsShape:
    """What a client may set, in both dialects at once: a client that uses the wrong one gets Azure's error."""
    rows: Tree = dict(more)
    for setting in settings:
        if setting.client_shape is not None:
            for path in setting.paths:
                if value_at(rows, path) is LEFT_OUT:  # of two rows with the same path in GA, the first gives the shape
                    _put(rows, path, setting.client_shape)
    return _as_fields(rows)


def _as_fields(rows: Tree) -> FieldsShape:
    return FieldsShape({name: _as_fields(row) if isinstance(row, dict) else row for name, row in rows.items()})


def _shown_tree(settings: Sequence[Setting], facts: Sequence[str]) -> Tree:
    tree: Tree = dict.fromkeys(facts)
    for setting in settings:
        if setting.shown:
            for path in setting.paths:
                _put(tree, path, None)
    return tree


def _converted(stated: Fields, settings: tuple[Setting, ...], source: Dialect, target: Dialect) -> dict[str, Any]:
    if source == "preview":
        stated = _without_synonyms(stated, target)
    converted: dict[str, Any] = {}
    for setting in settings:
        source_path, target_path = setting.path(source), setting.path(target)
        if source_path is None or target_path is None or (value := value_at(stated, source_path)) is LEFT_OUT:
            continue
        if source != target:
            value = values.without_nulls(value)
        if (value := setting.converted(value, target)) is not LEFT_OUT:
            _put(converted, target_path, value)
    return converted


def _without_synonyms(stated: Fields, target: Dialect) -> Fields:
    """Flat settings with each value under the one name where the rows look for it.

    Preview has two names for some settings, and splits one of GA's into two fields.
    """
    stated = {"input_items": stated["input"], **stated} if "input" in stated else stated
    if target == "preview":
        return stated
    rate_hz = stated.get("input_audio_sampling_rate")
    if isinstance(rate_hz, int) and stated.get("input_audio_format", "pcm16") == "pcm16":
        stated = {**stated, "input_audio_format": {"type": "audio/pcm", "rate": rate_hz}}
    if "max_response_output_tokens" in stated:
        stated = {"max_output_tokens": stated["max_response_output_tokens"], **stated}
    return {"conversation": "none", **stated} if stated.get("commit") is False else stated


def _rest(stated: Fields, settings: tuple[Setting, ...], source: Dialect) -> dict[str, Any]:
    names = {path[0] for setting in settings if (path := setting.path(source)) is not None}
    return {name: value for name, value in stated.items() if name not in names}


def value_at(stated: Any, path: tuple[str, ...]) -> Any:
    """What is at `path` in `stated`; LEFT_OUT where nothing is."""
    for name in path:
        if not isinstance(stated, dict) or name not in stated:
            return LEFT_OUT
        stated = stated[name]
    return stated


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _shown(stated: Fields, tree: Tree) -> Fields:
    kept: dict[str, Any] = {}
    whole = True
    for name, value in stated.items():
        if name not in tree:  # an allowlist: what Azure adds tomorrow stays hidden
            whole = False
        elif (inner := tree[name]) is None or value is None:
            kept[name] = value
        elif isinstance(value, dict):
            kept[name] = _shown(value, inner)
            whole = whole and kept[name] is value
        else:
            whole = False
    return stated if whole else kept


CLIENT_SESSION = _client_fields(SESSION_ROWS, type=Word(("realtime",)))
"""What a client may set in `session.update`."""
CLIENT_RESPONSE = _client_fields(RESPONSE_ROWS)
"""What a client may set in `response.create`."""
_SHOWN_SESSION = _shown_tree(SESSION_ROWS, _SESSION_FACTS)
_SHOWN_RESPONSE = _shown_tree(RESPONSE_ROWS, _RESPONSE_FACTS)
