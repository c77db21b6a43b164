"""The settings of sessions and responses in either dialect, one row a setting. Pure.

GA nests them (`audio.input.turn_detection`); preview and Voice Live have them flat (docs/azure.md §4.3). The rows of a
session are those of the one table, `strategies/session_model/session_fields.py`; a name without a row is not a setting.

A row also states what a client may do with the setting, on the proxy and on the compatible endpoints alike: the shape
of the values that a client may set (without one only the agent sets it), and whether a client may see it. Both are
allowlists: a new row grants neither until somebody decides that it does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Any

from strategies.session_model.agent_settings import CLIENT_MAY_SET, ClientSetting, Dialect
from strategies.session_model.session_fields import LEFT_OUT, SESSION_FIELDS, put_at, value_at
from token_broker.relay.dialects import values
from token_broker.relay.dialects.client_values import (
    AUDIO_FORMAT,
    ECHO_CANCELLATION,
    INPUTS,
    MAX_TOKENS,
    MODALITIES,
    NOISE_REDUCTION,
    TOOL_CHOICE,
    TRANSCRIPTION,
    TURN_DETECTION,
    VOICE,
)
from token_broker.relay.dialects.conversation_items import items_for, shown_item
from token_broker.relay.dialects.shapes import Fields as FieldsShape
from token_broker.relay.dialects.shapes import Flag, Labels, Number, Shape, Text, Word

__all__ = [
    "RESPONSE_ROWS",
    "SESSION_ROWS",
    "MaySet",
    "Setting",
    "client_response",
    "client_session",
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
MaySet = frozenset[ClientSetting]
"""What an agent's clients may set."""
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
class _Row:
    """How a row's value is converted, and what a client may do with it; see `Setting`."""

    convert: Convert = lambda value, _dialect: value
    _: KW_ONLY
    nullable: bool = False
    client: Shape | None = None
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a setting is in each dialect (None: nowhere), and how its value is converted.

    `nullable`: null switches something off; elsewhere null says nothing, and is left out. A client may set it in a
    shape of its row's (without one only the agent sets it) where its agent's `client_may_set` has the word `client`, if
    there is one. `shown`: a client may see it in Azure's events.
    """

    ga: tuple[str, ...] | None
    preview: tuple[str, ...] | None
    row: _Row
    client: ClientSetting | None

    @property
    def convert(self) -> Convert:
        return self.row.convert

    @property
    def shown(self) -> bool:
        return self.row.shown

    @property
    def paths(self) -> list[tuple[str, ...]]:
        return [path for path in (self.ga, self.preview) if path is not None]

    def path(self, dialect: Dialect) -> tuple[str, ...] | None:
        return self.ga if dialect == "ga" else self.preview

    def shape_for(self, may_set: MaySet) -> Shape | None:
        """What a client may set here, if anything."""
        return self.row.client if self.client is None or self.client in may_set else None

    def converted(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None if self.row.nullable else LEFT_OUT
        return self.row.convert(value, dialect)


def _setting(ga: str | None, preview: str | None, row: _Row = _Row(), client: ClientSetting | None = None) -> Setting:
    return Setting(tuple(ga.split(".")) if ga else None, (preview,) if preview else None, row, client)


# How each row of the one table is translated between the dialects, and what a client may do with it: the shape of what
# it sets, where `client_may_set` lets it, and whether it sees it.
_AS_IT_IS = _Row()
_TRANSLATED: Mapping[str, _Row] = {
    "modalities": _Row(values.modalities, client=MODALITIES, shown=True),
    "model": _Row(shown=True),
    "voices": _Row(values.voice, client=VOICE),
    "input_format": _Row(values.input_format, client=AUDIO_FORMAT, shown=True),
    "input_rate": _Row(values.input_rate_hz, client=Number(), shown=True),
    "output_format": _Row(values.audio_format, client=AUDIO_FORMAT, shown=True),
    "turn_detection": _Row(values.turn_detection, nullable=True, client=TURN_DETECTION, shown=True),
    "transcription": _Row(values.transcription, nullable=True, client=TRANSCRIPTION),
    "noise_reduction": _Row(values.noise_reduction, nullable=True, client=NOISE_REDUCTION, shown=True),
    "echo_cancellation": _Row(nullable=True, client=ECHO_CANCELLATION, shown=True),
    "temperature": _Row(client=Number(), shown=True),
    "max_output_tokens": _Row(client=MAX_TOKENS, shown=True),
    "speed": _Row(client=Number(), shown=True),
    "tools": _Row(values.tools),
    "tool_choice": _Row(values.tool_choice, client=TOOL_CHOICE),
    "parallel_tool_calls": _Row(client=Flag()),
    "reasoning_effort": _Row(values.reasoning_effort, client=Text()),
    "prompt": _Row(nullable=True),
    "interim_response": _Row(nullable=True),
    "include": _Row(values.includes, shown=True),
    "tracing": _Row(lambda *_: LEFT_OUT),  # OpenAI's own: Azure does not have it
    "truncation": _Row(shown=True),
    "timestamps": _Row(shown=True),
    "animation": _Row(shown=True),
    "avatar": _Row(shown=True),  # its ICE servers are the client's to connect to
}
SESSION_ROWS = tuple(
    Setting(each.ga, each.preview, _TRANSLATED.get(each.name, _AS_IT_IS), each.client) for each in SESSION_FIELDS
)
RESPONSE_ROWS = (
    _setting("instructions", "instructions"),
    _setting("output_modalities", "modalities", _Row(values.modalities, client=MODALITIES, shown=True), "modalities"),
    _setting(
        "audio.output.format",
        "output_audio_format",
        _Row(values.audio_format, client=AUDIO_FORMAT, shown=True),
        "formats",
    ),
    _setting("reasoning.effort", "reasoning_effort", _TRANSLATED["reasoning_effort"], "reasoning_effort"),
    _setting("tools", "tools", _Row(values.tools)),
    _setting("tool_choice", "tool_choice", _TRANSLATED["tool_choice"], "tool_choice"),
    _setting("prompt", None, _Row(nullable=True)),
    _setting(None, "temperature", _TRANSLATED["temperature"], "temperature"),
    _setting(None, "interim_response", _Row(nullable=True)),
    _setting("audio.output.voice", "voice", _Row(values.voice, client=VOICE, shown=True), "voice"),
    _setting("max_output_tokens", "max_output_tokens", _TRANSLATED["max_output_tokens"], "max_output_tokens"),
    _setting("metadata", "metadata", _Row(nullable=True, client=Labels(), shown=True)),
    _setting("conversation", "conversation", _Row(client=Word(("auto", "none")), shown=True)),
    _setting("input", "input_items", _Row(items_for, client=INPUTS)),
    _setting("parallel_tool_calls", None, _TRANSLATED["parallel_tool_calls"], "parallel_tool_calls"),
    _setting(None, "max_response_output_tokens", _TRANSLATED["max_output_tokens"], "max_output_tokens"),
    _setting(None, "append_input_items", _Row(items_for, client=INPUTS)),
    _setting(None, "pre_generated_assistant_message"),
    _setting(None, "commit", _Row(client=Flag())),
    _setting(None, "cancel_previous", _Row(client=Flag())),
    _setting(None, "invoke_input"),
)

# What a client may see of Azure's session and response beside the settings.
_SESSION_FACTS = ("id", "object", "type", "expires_at")
_RESPONSE_FACTS = ("id", "object", "status", "status_details", "output", "conversation_id", "usage")

Tree = dict[str, Any]
"""Names, each with the tree of what is permitted within it; None where everything is."""


@cache
def client_session(may_set: MaySet = CLIENT_MAY_SET) -> FieldsShape:
    """What a client may set in `session.update`, where its agent's `client_may_set` is `may_set`."""
    return _client_fields(SESSION_ROWS, may_set, type=Word(("realtime",)))


@cache
def client_response(may_set: MaySet = CLIENT_MAY_SET) -> FieldsShape:
    """The same of `response.create`."""
    return _client_fields(RESPONSE_ROWS, may_set)


def _client_fields(settings: Sequence[Setting], may_set: MaySet, **more: Shape) -> FieldsShape:
    """What a client may set, in both dialects at once: a client that uses the wrong one gets Azure's error."""
    rows: Tree = dict(more)
    for setting in settings:
        if (shape := setting.shape_for(may_set)) is not None:
            for path in setting.paths:
                if value_at(rows, path) is LEFT_OUT:  # of two rows with the same path in GA, the first gives the shape
                    put_at(rows, path, shape)
    return _as_fields(rows)


def _as_fields(rows: Tree) -> FieldsShape:
    return FieldsShape({name: _as_fields(row) if isinstance(row, dict) else row for name, row in rows.items()})


def _shown_tree(settings: Sequence[Setting], facts: Sequence[str]) -> Tree:
    tree: Tree = dict.fromkeys(facts)
    for setting in settings:
        if setting.shown:
            for path in setting.paths:
                put_at(tree, path, None)
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
            put_at(converted, target_path, value)
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


_SHOWN_SESSION = _shown_tree(SESSION_ROWS, _SESSION_FACTS)
_SHOWN_RESPONSE = _shown_tree(RESPONSE_ROWS, _RESPONSE_FACTS)
