"""One session, and the bodies that Azure takes of it: GA's mint and socket, Voice Live's socket, the flat mints.

`SESSION_FIELDS` is the one table: for each field where it is in either dialect, which bodies have it, and how an
agent's setting becomes its value there. GA's shape is nested; the one of the preview, the first version's mints and
Voice Live is flat (docs/azure.md §2.1, §2.3, §6.2). The relay translates clients' fields by the same rows.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from strategies.session_model.agent_settings import (
    LEFT_OUT,
    AgentSettings,
    AgentTranscription,
    AnyDialect,
    ClientSetting,
    DetectionSettings,
    Dialect,
    Voice,
)

__all__ = [
    "LEFT_OUT",
    "SESSION_FIELDS",
    "Body",
    "SessionField",
    "body_of",
    "flat_session",
    "ga_client_secret",
    "ga_realtime_session",
    "ga_session",
    "languages_of",
    "model_reasons",
    "overlaid",
    "put_at",
    "stated_transcription",
    "stated_turn_detection",
    "value_at",
    "voice_live_session",
    "voice_live_transcription",
    "voice_name",
]

Body = Literal["ga_mint", "ga_socket", "voice_live", "flat_mint"]
"""Which of Azure's four bodies; `ga_mint` is an SDP call's as well, since its session is the mint's."""

_PCM_RATE_HZ = 24_000
_OPENAI_TRANSCRIPTION = "whisper-1"  # built into the preview's mints and Voice Live: no deployment
_OPENAI_VOICES = frozenset({"alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"})
# The broker's own: more patient than Azure's 0.5, 300, 200.
_LOUDNESS = {"threshold": 0.6, "prefix_padding_ms": 300, "silence_duration_ms": 800}
_VOICE_LIVE_PARALLEL_CALLS_SINCE = "2026-07-15"  # docs/azure.md §6.1
_WITH_KEYWORDS = re.compile(r"gpt(-live)?-transcribe")  # docs/azure.md §7.3, as are the two below
_WITHOUT_PROMPT = re.compile(r"gpt-realtime-whisper|gpt-4o-transcribe-diarize")
_KEYWORDS_AS_PROMPT = re.compile(r"whisper")
_OPENAIS_HOSTED = re.compile(r"whisper-1|gpt-4o(-mini)?-transcribe(-diarize)?")
_AZURES_OWN = re.compile(r"azure-speech|mai-transcribe(-1)?")
_FLAT_TEMPERATURES = (0.6, 1.2)
_REASONS = re.compile(r"gpt-5")  # of Voice Live's models that are no realtime ones
_REASONS_BY_NAME = re.compile(r"gpt-realtime-2|gpt-5")


class AskedSession(Protocol):
    """What this table needs of a `strategies.base.SessionSpec`."""

    @property
    def model(self) -> str: ...
    @property
    def model_family(self) -> str: ...
    @property
    def instructions(self) -> str: ...
    @property
    def voices(self) -> Mapping[AnyDialect, Voice]: ...
    @property
    def modalities(self) -> tuple[str, ...]: ...
    @property
    def transcription_model(self) -> str: ...
    @property
    def settings(self) -> AgentSettings: ...
    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]: ...
    @property
    def ttl_s(self) -> int: ...
    @property
    def voice_live_version(self) -> str: ...


@dataclass(frozen=True, slots=True)
class SessionField:
    """One row. `ga` and `preview` are its paths, None where the dialect lacks it.

    `name` is the key of the agents' file, where there is one. `client` is the word of `client_may_set` that lets a
    client change it. `stated` gives its value in a body: None switches it off, LEFT_OUT leaves it out.
    """

    name: str
    ga: tuple[str, ...] | None
    preview: tuple[str, ...] | None
    stated: Callable[[AskedSession, Body], Any] | None
    client: ClientSetting | None
    flat: tuple[str, ...] | None  # in the flat mints alone, where they differ from the preview dialect

    def path(self, dialect: Dialect) -> tuple[str, ...] | None:
        return self.ga if dialect == "ga" else self.preview

    def path_in(self, body: Body) -> tuple[str, ...] | None:
        if body.startswith("ga"):
            return self.ga
        return self.flat or self.preview if body == "flat_mint" else self.preview


def ga_client_secret(spec: AskedSession) -> dict[str, Any]:
    """The body of GA's mint: `expires_after` and the nested session."""
    return {
        "expires_after": {"anchor": "created_at", "seconds": spec.ttl_s},
        "session": {"type": "realtime", "model": spec.model, **ga_session(spec)},
    }


def ga_session(spec: AskedSession) -> dict[str, Any]:
    """GA's session fields without `type` and `model`. GA accepts one modality: audio, where both are wanted."""
    return body_of(spec, "ga_mint")


def flat_session(spec: AskedSession) -> dict[str, Any]:
    """The flat body of the first version's mint routes."""
    return {"model": spec.model, **body_of(spec, "flat_mint")}


def ga_realtime_session(spec: AskedSession) -> dict[str, Any]:
    """The session of a `session.update` on GA's WebSocket. Both audio formats are stated: PCM16 at 24 kHz."""
    return {"type": "realtime", **body_of(spec, "ga_socket")}


def voice_live_session(spec: AskedSession) -> dict[str, Any]:
    """The session of a `session.update` on Voice Live's WebSocket. The URL names the model."""
    return body_of(spec, "voice_live")


def voice_live_transcription(model: str) -> str:
    """The model Voice Live transcribes with: OpenAI's work with `gpt-realtime*` alone (docs/azure.md §6.2).

    `model` is a deployment's name, or the family of what is deployed.
    """
    return _OPENAI_TRANSCRIPTION if model.startswith("gpt-realtime") else "azure-speech"


def voice_name(voice: Voice) -> str:
    """What a voice is called, as plans and the status show it."""
    return voice if isinstance(voice, str) else str(voice.get("name") or voice.get("id") or voice.get("type"))


def value_at(stated: Any, path: tuple[str, ...]) -> Any:
    """What is at `path` in `stated`; LEFT_OUT where nothing is."""
    for name in path:
        if not isinstance(stated, dict) or name not in stated:
            return LEFT_OUT
        stated = stated[name]
    return stated


def put_at(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Puts `value` at `path` into `tree`, with the objects on the way."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def overlaid(session: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The session with the raw fields laid over it: objects field by field, but one of another `type` as a whole."""
    result = dict(session)
    for name, value in overlay.items():
        below = result.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            replaced = "type" in value and value["type"] != below.get("type")
            result[name] = dict(value) if replaced else overlaid(below, value)
        else:
            result[name] = value
    return result


def body_of(
    spec: AskedSession, body: Body, rows: Iterable[SessionField] | None = None, *, explicit: bool = False
) -> dict[str, Any]:
    """The session's fields in that body. Only `explicit` says null for what is off: a new session has it off anyway,
    but for turn detection.
    """
    session: dict[str, Any] = {}
    for name, path, stated in _stated_in(body) if rows is None else _stated_among(rows, body):
        if (value := stated(spec, body)) is LEFT_OUT:
            continue
        if value is not None or explicit or name == "turn_detection":
            put_at(session, path, value)
    overlay = None if body == "flat_mint" else spec.settings.session.get("ga" if body.startswith("ga") else "preview")
    return overlaid(session, overlay) if overlay else session


def _stated_among(
    rows: Iterable[SessionField], body: Body
) -> tuple[tuple[str, tuple[str, ...], Callable[[AskedSession, Body], Any]], ...]:
    """The rows that the body states: each one's name, path, and how its value is made."""
    return tuple(
        (row.name, path, row.stated)
        for row in rows
        if row.stated is not None and (path := row.path_in(body)) is not None
    )


@functools.cache
def _stated_in(body: Body) -> tuple[tuple[str, tuple[str, ...], Callable[[AskedSession, Body], Any]], ...]:
    return _stated_among(SESSION_FIELDS, body)  # once: each mint asks for it


# --- what an agent's settings are in a body


def stated_modalities(spec: AskedSession, body: Body) -> Any:
    if body.startswith("ga"):
        return ["audio" if "audio" in spec.modalities else "text"]
    return list(spec.modalities)


def stated_voice(spec: AskedSession, body: Body) -> Any:
    if body.startswith("ga"):
        voice = spec.voices["ga"]
        return voice if isinstance(voice, str) else dict(voice)
    voice = spec.voices["preview"]
    if body == "flat_mint":
        return voice_name(voice)
    if isinstance(voice, str):
        if voice in _OPENAI_VOICES:
            return {"type": "openai", "name": voice}
        voice = {"type": "azure-standard", "name": voice}
    language = spec.settings.language
    if language and "-" in language and voice.get("type") in _WITH_ACCENTS and "locale" not in voice:
        # A wish, not `locale`: that would make the voice silent in every other language.
        return {"prefer_locales": [language], **voice}
    return dict(voice)


def stated_turn_detection(spec: AskedSession, body: Body) -> Any:
    """Voice Live's semantic detection is Azure's own; null is none."""
    wanted = spec.settings.turn_detection or DetectionSettings()
    kind = wanted.type
    if kind == "none":
        return None
    if body == "voice_live":
        kind = "azure_semantic_vad" if kind == "semantic_vad" else kind
    elif kind.startswith("azure_semantic_vad"):
        kind = "semantic_vad"
    names = ["interrupt_response", "create_response"]
    names = [*names, "eagerness"] if kind == "semantic_vad" else [*_LOUDNESS, *names]
    stated = {name: value for name in names if (value := getattr(wanted, name)) is not None}
    return {"type": kind, **(_LOUDNESS if kind == "server_vad" else {}), **stated}


def stated_transcription(spec: AskedSession, body: Body) -> Any:
    """The model, and the hints that it takes in the form that it takes (docs/azure.md §7.3)."""
    hints = spec.settings.transcription
    if hints is False:
        return None
    hints = hints or AgentTranscription()
    model = _transcription_model(spec, hints.model, body)
    sent: dict[str, Any] = {"model": model}
    languages = languages_of(spec)
    if body == "voice_live":
        if languages:
            sent["language"] = ",".join(languages)
        if hints.prompt and not model.startswith(("azure-speech", "mai-")):
            sent["prompt"] = hints.prompt
        if hints.phrases:
            sent["phrase_list"] = list(hints.phrases)
        return sent
    short = [tag for each in languages if len(tag := each.split("-")[0].lower()) == len("en")]
    takes_keywords = _WITH_KEYWORDS.match(model) is not None
    if len(set(short)) == 1 and len(short) == len(languages):
        sent["language"] = short[0]
    elif takes_keywords and short:
        sent["languages"] = list(dict.fromkeys(short))
    if takes_keywords and hints.phrases:
        sent["keywords"] = list(hints.phrases)
    if _WITHOUT_PROMPT.match(model) is None:
        told = [hints.prompt] if hints.prompt else []
        if hints.phrases and not takes_keywords:
            phrases = ", ".join(hints.phrases)
            told.append(phrases if _KEYWORDS_AS_PROMPT.match(model) else f"Expect these words: {phrases}.")
        if told:
            sent["prompt"] = " ".join(told)
    return sent


def _transcription_model(spec: AskedSession, wanted: str | None, body: Body) -> str:
    """The model that the agent names, where the body has it, else the default there.

    GA's is a deployment's name. Voice Live and the flat mints host what they have themselves (docs/azure.md §6.2).
    """
    if body.startswith("ga"):
        return spec.transcription_model if wanted is None or _AZURES_OWN.match(wanted) else wanted
    if body == "flat_mint":
        return wanted if wanted and _OPENAIS_HOSTED.fullmatch(wanted) else _OPENAI_TRANSCRIPTION
    default = voice_live_transcription(spec.model_family or spec.model)
    fitting = _AZURES_OWN if default == "azure-speech" else _OPENAIS_HOSTED
    return wanted if wanted and fitting.fullmatch(wanted) else default


def languages_of(spec: AskedSession) -> tuple[str, ...]:
    """The languages that the user may speak, as the agent states them."""
    hints = spec.settings.transcription
    stated = (hints.language if hints else None) or spec.settings.language
    return () if stated is None else (stated,) if isinstance(stated, str) else stated


def stated_noise_reduction(spec: AskedSession, body: Body) -> Any:
    wanted = spec.settings.noise_reduction or ("deep" if body == "voice_live" else "off")
    if wanted == "off":
        return None
    deep = _DEEP if body == "voice_live" else "near_field"  # the nearest
    return {"type": deep if wanted == "deep" else wanted}


def stated_echo_cancellation(spec: AskedSession, body: Body) -> Any:
    if body != "voice_live":
        return LEFT_OUT
    return None if spec.settings.echo_cancellation == "off" else {"type": "server_echo_cancellation"}


def stated_temperature(spec: AskedSession, body: Body) -> Any:
    wanted = spec.settings.temperature
    lowest, highest = _FLAT_TEMPERATURES
    if wanted is None or body.startswith("ga") or (body == "flat_mint" and not lowest <= wanted <= highest):
        return LEFT_OUT
    return wanted


def stated_tools(spec: AskedSession, body: Body) -> Any:
    """Functions are the same everywhere. The flat mints have no MCP; Voice Live has fewer of its fields than GA."""
    tools = [
        _mcp(tool, body) if tool.get("type") == "mcp" else dict(tool)
        for tool in spec.tools
        if body != "flat_mint" or tool.get("type") != "mcp"
    ]
    return tools or LEFT_OUT


def _mcp(tool: Mapping[str, Any], body: Body) -> dict[str, Any]:
    """An MCP server: a selection of its tools is a list of names on Voice Live, an object with that list in GA."""
    approval = tool.get("require_approval")
    if isinstance(approval, Mapping):
        if body == "voice_live":
            selected = {
                when: names.get("tool_names", []) if isinstance(names, Mapping) else names
                for when, names in approval.items()
            }
        else:
            selected = {
                when: {"tool_names": names} if isinstance(names, list | tuple) else names
                for when, names in approval.items()
            }
        tool = {**tool, "require_approval": selected}
    return {name: value for name, value in tool.items() if body != "voice_live" or name in _VOICE_LIVE_MCP}


def stated_tool_choice(spec: AskedSession, body: Body) -> Any:
    wanted = spec.settings.tool_choice
    if wanted is None or isinstance(wanted, str):
        return LEFT_OUT if wanted is None else wanted
    if body == "flat_mint" or (body == "voice_live" and wanted.type == "mcp"):
        return LEFT_OUT
    return wanted.model_dump(exclude_none=True)


def model_reasons(spec: AskedSession) -> bool:
    """Whether the model reasons. The family counts; of one that it knows nothing of, the name."""
    if spec.model_family in {"", "other"}:
        return (_REASONS if spec.model_family else _REASONS_BY_NAME).match(spec.model) is not None
    return spec.model_family == "gpt-realtime-2"


def stated_parallel_tool_calls(spec: AskedSession, body: Body) -> Any:
    wanted = spec.settings.parallel_tool_calls
    if wanted is None or body == "flat_mint":
        return LEFT_OUT
    if body == "voice_live":
        old = spec.voice_live_version and spec.voice_live_version < _VOICE_LIVE_PARALLEL_CALLS_SINCE
        return LEFT_OUT if old else wanted
    return wanted if model_reasons(spec) else LEFT_OUT


def stated_reasoning_effort(spec: AskedSession, body: Body) -> Any:
    wanted = spec.settings.reasoning_effort
    if wanted is None or body == "flat_mint" or not model_reasons(spec) or (wanted == "none" and body != "voice_live"):
        return LEFT_OUT
    return wanted


def _plain(name: str) -> Callable[[AskedSession, Body], Any]:
    """A setting that has the same value in every body that has it."""

    def stated(spec: AskedSession, _body: Body) -> Any:
        value = getattr(spec.settings, name)
        return LEFT_OUT if value is None else value

    return stated


def _on_sockets(ga: Any, voice_live: Any) -> Callable[[AskedSession, Body], Any]:
    return lambda _spec, body: {"ga_socket": ga, "voice_live": voice_live}.get(body, LEFT_OUT)


def _row(
    name: str,
    ga: str | None,
    preview: str | None,
    stated: Callable[[AskedSession, Body], Any] | None = None,
    client: ClientSetting | None = None,
    *,
    flat: str | None = None,
) -> SessionField:
    nested = tuple(ga.split(".")) if ga else None
    return SessionField(name, nested, (preview,) if preview else None, stated, client, (flat,) if flat else None)


_DEEP = "azure_deep_noise_suppression"
_VOICE_LIVE_MCP = frozenset(
    {"type", "server_label", "server_url", "authorization", "headers", "allowed_tools", "require_approval"}
)
_WITH_ACCENTS = frozenset({"azure-standard", "azure-custom", "azure-personal", "avatar-voice-sync"})
_PCM = {"type": "audio/pcm", "rate": _PCM_RATE_HZ}

SESSION_FIELDS = (
    _row("instructions", "instructions", "instructions", lambda spec, _: spec.instructions),
    _row("modalities", "output_modalities", "modalities", stated_modalities, "modalities"),
    _row("model", "model", "model"),  # a mint's body has it beside the session, a socket's URL names it
    _row("voices", "audio.output.voice", "voice", stated_voice, "voice"),
    _row("input_format", "audio.input.format", "input_audio_format", _on_sockets(_PCM, "pcm16"), "formats"),
    _row(
        "input_rate", "audio.input.format", "input_audio_sampling_rate", _on_sockets(LEFT_OUT, _PCM_RATE_HZ),
        "formats",
    ),
    _row("output_format", "audio.output.format", "output_audio_format", _on_sockets(_PCM, "pcm16"), "formats"),
    _row("turn_detection", "audio.input.turn_detection", "turn_detection", stated_turn_detection, "turn_detection"),
    _row(
        "transcription", "audio.input.transcription", "input_audio_transcription", stated_transcription,
        "transcription",
    ),
    _row(
        "noise_reduction", "audio.input.noise_reduction", "input_audio_noise_reduction", stated_noise_reduction,
        "noise_reduction",
    ),
    _row("echo_cancellation", None, "input_audio_echo_cancellation", stated_echo_cancellation, "echo_cancellation"),
    _row("temperature", None, "temperature", stated_temperature, "temperature"),
    _row(
        "max_output_tokens", "max_output_tokens", "max_response_output_tokens",
        _plain("max_output_tokens"), "max_output_tokens",
    ),
    # Voice Live has no speed: its Azure voices have a `rate`.
    _row("speed", "audio.output.speed", None, _plain("speed"), "speed", flat="speed"),
    _row("tools", "tools", "tools", stated_tools),
    _row("tool_choice", "tool_choice", "tool_choice", stated_tool_choice, "tool_choice"),
    _row(
        "parallel_tool_calls", "parallel_tool_calls", "parallel_tool_calls", stated_parallel_tool_calls,
        "parallel_tool_calls",
    ),
    _row("reasoning_effort", "reasoning.effort", "reasoning_effort", stated_reasoning_effort, "reasoning_effort"),
    # Without a key in the agents' file: for raw overlays, and for the relay's translation.
    _row("prompt", "prompt", None),
    _row("interim_response", None, "interim_response"),
    _row("include", "include", "include"),
    _row("tracing", "tracing", None),
    _row("truncation", "truncation", None),
    _row("timestamps", None, "output_audio_timestamp_types"),
    _row("animation", None, "animation"),
    _row("avatar", None, "avatar"),
    _row("metadata", None, "metadata"),
)  # fmt: skip
