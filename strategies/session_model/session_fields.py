"""One session, and the bodies that Azure takes of it: GA's mint and socket, Voice Live's socket, the flat mints.

`SESSION_FIELDS` is the one table: for each field where it is in either dialect, which bodies have it, and how an
agent's setting becomes its value there. GA's shape is nested; the one of the preview, the first version's mints and
Voice Live is flat (docs/azure.md §2.1, §2.3, §6.2). The relay translates clients' fields by the same rows.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from strategies.base import SessionSpec
from strategies.session_model.agent_settings import (
    AgentSettings,
    AgentTranscription,
    ClientSetting,
    DetectionSettings,
    Dialect,
    Voice,
)

__all__ = [
    "LEFT_OUT",
    "SESSION_FIELDS",
    "Body",
    "LostSetting",
    "SessionField",
    "agents_session",
    "flat_session",
    "ga_client_secret",
    "ga_realtime_session",
    "ga_session",
    "is_same_session",
    "lost_settings",
    "put_at",
    "voice_live_session",
    "voice_live_transcription",
    "voice_name",
]

LEFT_OUT: Any = object()
"""Stands for a value that a body cannot express, or for none."""

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
_REASONS = re.compile(r"gpt-realtime-2|gpt-5")


@dataclass(frozen=True, slots=True)
class SessionField:
    """One row. `ga` and `preview` are its paths, None where the dialect lacks it.

    `name` is the key of the agents' file, where there is one. `client` is the word of `client_may_set` that lets a
    client change it. `stated` gives its value in a body: None switches it off, LEFT_OUT leaves it out.
    """

    name: str
    ga: tuple[str, ...] | None
    preview: tuple[str, ...] | None
    stated: Callable[[SessionSpec, Body], Any] | None
    client: ClientSetting | None
    flat: tuple[str, ...] | None  # in the flat mints alone, where they differ from the preview dialect

    def path(self, dialect: Dialect) -> tuple[str, ...] | None:
        return self.ga if dialect == "ga" else self.preview

    def path_in(self, body: Body) -> tuple[str, ...] | None:
        if body.startswith("ga"):
            return self.ga
        return self.flat or self.preview if body == "flat_mint" else self.preview


@dataclass(frozen=True, slots=True)
class LostSetting:
    """A key that an agent states and a body does not have, or has in another form. `why` completes a sentence."""

    key: str
    body: Body
    why: str


def ga_client_secret(spec: SessionSpec) -> dict[str, Any]:
    """The body of GA's mint: `expires_after` and the nested session."""
    return {
        "expires_after": {"anchor": "created_at", "seconds": spec.ttl_s},
        "session": {"type": "realtime", "model": spec.model, **ga_session(spec)},
    }


def ga_session(spec: SessionSpec) -> dict[str, Any]:
    """GA's session fields without `type` and `model`. GA accepts one modality: audio, where both are wanted."""
    return _body(spec, "ga_mint")


def flat_session(spec: SessionSpec) -> dict[str, Any]:
    """The flat body of the first version's mint routes."""
    return {"model": spec.model, **_body(spec, "flat_mint")}


def ga_realtime_session(spec: SessionSpec) -> dict[str, Any]:
    """The session of a `session.update` on GA's WebSocket. Both audio formats are stated: PCM16 at 24 kHz."""
    return {"type": "realtime", **_body(spec, "ga_socket")}


def voice_live_session(spec: SessionSpec) -> dict[str, Any]:
    """The session of a `session.update` on Voice Live's WebSocket. The URL names the model."""
    return _body(spec, "voice_live")


def agents_session(
    spec: SessionSpec,
    dialect: Dialect,
    *,
    without: frozenset[ClientSetting] = frozenset(),
    after: AgentSettings | None = None,
) -> dict[str, Any]:
    """The session of an update in the middle of a talk: at a handoff, or to put back what a client changed.

    It switches off what the agent does not have. It names no voice, since Azure refuses a change of voice once the
    model has spoken (docs/azure.md §4.2), no modality and no format, which are the talk's; and nothing of `without`.
    `after` are the settings of the agent before: what only that one states gets Azure's default again.
    """
    body: Body = "ga_socket" if dialect == "ga" else "voice_live"
    kept = [each for each in SESSION_FIELDS if each.name not in _OF_THE_TALK and each.client not in without]
    session = _body(spec, body, kept, explicit=True)
    session.setdefault("tools", [])
    for row in kept:
        path = row.path(dialect)
        if path is None or row.name not in _RESET or getattr(spec.settings, row.name) is not None:
            continue
        if getattr(after, row.name, None) is not None:
            put_at(session, path, _RESET[row.name])
    return {"type": "realtime", **session} if dialect == "ga" else session


def is_same_session(old: AgentSettings, new: AgentSettings, dialect: Dialect) -> bool:
    """Whether a running session can go over from the one agent's settings to the other's.

    Voice Live takes no other type of turn detection (docs/azure.md §12.1); of reasoning nobody knows the default; and a
    raw field may be one that a session is opened with.
    """
    if old.session.get(dialect, {}) != new.session.get(dialect, {}):
        return False
    if old.reasoning_effort is not None and new.reasoning_effort is None:
        return False
    if dialect == "ga":
        return True
    kinds = {(each.turn_detection or DetectionSettings()).type for each in (old, new)}
    return len(kinds) == 1


def voice_live_transcription(model: str) -> str:
    """The model Voice Live transcribes with: OpenAI's work with `gpt-realtime*` alone (docs/azure.md §6.2).

    `model` is a deployment's name, or the family of what is deployed.
    """
    return _OPENAI_TRANSCRIPTION if model.startswith("gpt-realtime") else "azure-speech"


def voice_name(voice: Voice) -> str:
    """What a voice is called, as plans and the status show it."""
    return voice if isinstance(voice, str) else str(voice.get("name") or voice.get("id") or voice.get("type"))


def lost_settings(spec: SessionSpec, body: Body) -> Iterator[LostSetting]:
    """What the agent's settings say and the body does not, in the order of the table."""
    stated = spec.settings
    for row in SESSION_FIELDS:
        if row.stated is None or getattr(stated, row.name, None) is None:
            continue
        if row.path_in(body) is None or row.stated(spec, body) is LEFT_OUT:
            yield LostSetting(row.name, body, "is left out")
    if (detection := stated.turn_detection) is not None:
        sent = _turn_detection(spec, body) or {}
        if detection.type not in {sent.get("type"), "none"}:
            yield LostSetting("turn_detection.type", body, f"is sent as {sent.get('type')}")
        for name in ("threshold", "prefix_padding_ms", "silence_duration_ms", "eagerness"):
            if getattr(detection, name) is not None and name not in sent:
                yield LostSetting(f"turn_detection.{name}", body, "is left out")
    if stated.noise_reduction == "deep" and body != "voice_live":
        yield LostSetting("noise_reduction", body, "is sent as near_field")
    yield from _lost_hints(spec, body)


def put_at(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Puts `value` at `path` into `tree`, with the objects on the way."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _lost_hints(spec: SessionSpec, body: Body) -> Iterator[LostSetting]:
    """Which hints of the transcription do not reach the body's model."""
    hints = spec.settings.transcription
    sent = _transcription(spec, body)
    if not isinstance(sent, dict):
        return
    languages = _languages(spec)
    if languages and "language" not in sent and "languages" not in sent:
        key = "transcription.language" if hints and hints.language else "language"
        yield LostSetting(key, body, f"is left out: {sent['model']} takes one language by its two letters")
    if hints and hints.prompt and hints.prompt not in sent.get("prompt", ""):
        yield LostSetting("transcription.prompt", body, f"is left out: {sent['model']} takes none")
    told = {*sent.get("keywords", ()), *sent.get("phrase_list", ())}
    if hints and any(phrase not in told and phrase not in sent.get("prompt", "") for phrase in hints.phrases):
        yield LostSetting("transcription.phrases", body, f"is left out: {sent['model']} takes none")


def _body(
    spec: SessionSpec, body: Body, rows: Iterable[SessionField] | None = None, *, explicit: bool = False
) -> dict[str, Any]:
    """The session's fields in that body. Only `explicit` says null for what is off: a new session has it off anyway,
    but for turn detection.
    """
    session: dict[str, Any] = {}
    for row in SESSION_FIELDS if rows is None else rows:
        path = row.path_in(body)
        if row.stated is None or path is None or (value := row.stated(spec, body)) is LEFT_OUT:
            continue
        if value is not None or explicit or row.name == "turn_detection":
            put_at(session, path, value)
    overlay = None if body == "flat_mint" else spec.settings.session.get("ga" if body.startswith("ga") else "preview")
    return _overlaid(session, overlay) if overlay else session


def _overlaid(session: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The session with the raw fields laid over it: objects field by field, but one of another `type` as a whole."""
    result = dict(session)
    for name, value in overlay.items():
        below = result.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            replaced = "type" in value and value["type"] != below.get("type")
            result[name] = dict(value) if replaced else _overlaid(below, value)
        else:
            result[name] = value
    return result


# --- what an agent's settings are in a body


def _modalities(spec: SessionSpec, body: Body) -> Any:
    if body.startswith("ga"):
        return ["audio" if "audio" in spec.modalities else "text"]
    return list(spec.modalities)


def _voice(spec: SessionSpec, body: Body) -> Any:
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


def _turn_detection(spec: SessionSpec, body: Body) -> Any:
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


def _transcription(spec: SessionSpec, body: Body) -> Any:
    hints = spec.settings.transcription
    if hints is False:
        return None
    hints = hints or AgentTranscription()
    model = _transcription_model(spec, hints.model, body)
    sent: dict[str, Any] = {"model": model}
    languages = _languages(spec)
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


def _transcription_model(spec: SessionSpec, wanted: str | None, body: Body) -> str:
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


def _languages(spec: SessionSpec) -> tuple[str, ...]:
    hints = spec.settings.transcription
    stated = (hints.language if hints else None) or spec.settings.language
    return () if stated is None else (stated,) if isinstance(stated, str) else stated


def _noise_reduction(spec: SessionSpec, body: Body) -> Any:
    wanted = spec.settings.noise_reduction or ("deep" if body == "voice_live" else "off")
    if wanted == "off":
        return None
    deep = _DEEP if body == "voice_live" else "near_field"  # the nearest
    return {"type": deep if wanted == "deep" else wanted}


def _echo_cancellation(spec: SessionSpec, body: Body) -> Any:
    if body != "voice_live":
        return LEFT_OUT
    return None if spec.settings.echo_cancellation == "off" else {"type": "server_echo_cancellation"}


def _temperature(spec: SessionSpec, body: Body) -> Any:
    wanted = spec.settings.temperature
    lowest, highest = _FLAT_TEMPERATURES
    if wanted is None or body.startswith("ga") or (body == "flat_mint" and not lowest <= wanted <= highest):
        return LEFT_OUT
    return wanted


def _tool_choice(spec: SessionSpec, body: Body) -> Any:
    wanted = spec.settings.tool_choice
    if wanted is None or isinstance(wanted, str):
        return LEFT_OUT if wanted is None else wanted
    if body == "flat_mint" or (body == "voice_live" and wanted.type == "mcp"):
        return LEFT_OUT
    return wanted.model_dump(exclude_none=True)


def _reasons(spec: SessionSpec) -> bool:
    """Whether the model reasons; by its family, or by its name where the family says nothing of it."""
    return spec.model_family == "gpt-realtime-2" or _REASONS.match(spec.model) is not None


def _parallel_tool_calls(spec: SessionSpec, body: Body) -> Any:
    wanted = spec.settings.parallel_tool_calls
    if wanted is None or body == "flat_mint":
        return LEFT_OUT
    if body == "voice_live":
        old = spec.voice_live_version and spec.voice_live_version < _VOICE_LIVE_PARALLEL_CALLS_SINCE
        return LEFT_OUT if old else wanted
    return wanted if _reasons(spec) else LEFT_OUT


def _reasoning_effort(spec: SessionSpec, body: Body) -> Any:
    wanted = spec.settings.reasoning_effort
    if wanted is None or body == "flat_mint" or not _reasons(spec) or (wanted == "none" and body != "voice_live"):
        return LEFT_OUT
    return wanted


def _plain(name: str) -> Callable[[SessionSpec, Body], Any]:
    """A setting that has the same value in every body that has it."""

    def stated(spec: SessionSpec, _body: Body) -> Any:
        value = getattr(spec.settings, name)
        return LEFT_OUT if value is None else value

    return stated


def _on_sockets(ga: Any, voice_live: Any) -> Callable[[SessionSpec, Body], Any]:
    return lambda _spec, body: {"ga_socket": ga, "voice_live": voice_live}.get(body, LEFT_OUT)


def _row(
    name: str,
    ga: str | None,
    preview: str | None,
    stated: Callable[[SessionSpec, Body], Any] | None = None,
    client: ClientSetting | None = None,
    *,
    flat: str | None = None,
) -> SessionField:
    nested = tuple(ga.split(".")) if ga else None
    return SessionField(name, nested, (preview,) if preview else None, stated, client, (flat,) if flat else None)


_DEEP = "azure_deep_noise_suppression"
_WITH_ACCENTS = frozenset({"azure-standard", "azure-custom", "azure-personal", "avatar-voice-sync"})
_OF_THE_TALK = frozenset({"voices", "modalities", "input_format", "input_rate", "output_format"})
_RESET = {
    "max_output_tokens": "inf",
    "speed": 1.0,
    "temperature": 0.7,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
}
_PCM = {"type": "audio/pcm", "rate": _PCM_RATE_HZ}

SESSION_FIELDS = (
    _row("instructions", "instructions", "instructions", lambda spec, _: spec.instructions),
    _row("modalities", "output_modalities", "modalities", _modalities, "modalities"),
    _row("model", "model", "model"),  # a mint's body has it beside the session, a socket's URL names it
    _row("voices", "audio.output.voice", "voice", _voice, "voice"),
    _row("input_format", "audio.input.format", "input_audio_format", _on_sockets(_PCM, "pcm16"), "formats"),
    _row(
        "input_rate", "audio.input.format", "input_audio_sampling_rate", _on_sockets(LEFT_OUT, _PCM_RATE_HZ),
        "formats",
    ),
    _row("output_format", "audio.output.format", "output_audio_format", _on_sockets(_PCM, "pcm16"), "formats"),
    _row("turn_detection", "audio.input.turn_detection", "turn_detection", _turn_detection, "turn_detection"),
    _row("transcription", "audio.input.transcription", "input_audio_transcription", _transcription, "transcription"),
    _row(
        "noise_reduction", "audio.input.noise_reduction", "input_audio_noise_reduction", _noise_reduction,
        "noise_reduction",
    ),
    _row("echo_cancellation", None, "input_audio_echo_cancellation", _echo_cancellation, "echo_cancellation"),
    _row("temperature", None, "temperature", _temperature, "temperature"),
    _row(
        "max_output_tokens", "max_output_tokens", "max_response_output_tokens",
        _plain("max_output_tokens"), "max_output_tokens",
    ),
    # Voice Live has no speed: its Azure voices have a `rate`.
    _row("speed", "audio.output.speed", None, _plain("speed"), "speed", flat="speed"),
    _row("tools", "tools", "tools", lambda spec, _: [dict(tool) for tool in spec.tools] if spec.tools else LEFT_OUT),
    _row("tool_choice", "tool_choice", "tool_choice", _tool_choice, "tool_choice"),
    _row(
        "parallel_tool_calls", "parallel_tool_calls", "parallel_tool_calls", _parallel_tool_calls,
        "parallel_tool_calls",
    ),
    _row("reasoning_effort", "reasoning.effort", "reasoning_effort", _reasoning_effort, "reasoning_effort"),
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
