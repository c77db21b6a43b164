"""What a strategy is asked for, `SessionSpec`, the bodies that Azure takes of it, and what a strategy grants.

There are two shapes of a session: GA's is nested; the one of the preview, the first version's mint routes and Voice
Live is flat (docs/azure.md §2.1, §2.3, §6.2).

This module imports little of ours, since nearly every other one imports it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import SecretStr

from strategies.session_model.agent_settings import Dialect, Voice, voice_name

__all__ = [
    "Attempt",
    "Dialect",
    "EphemeralGrant",
    "Grant",
    "ProxyGrant",
    "SessionSpec",
    "TurnDetection",
    "flat_session",
    "ga_client_secret",
    "ga_realtime_session",
    "ga_session",
    "voice_live_session",
    "voice_live_transcription",
]

_PCM_RATE_HZ = 24_000
_OPENAI_TRANSCRIPTION = "whisper-1"  # built into the preview's mints and Voice Live: no deployment


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """Server VAD: the loudness of speech (0 to 1), how much before it is kept, and the silence that ends it."""

    threshold: float = 0.6
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 800


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """One talk as Azure is asked for it. Both request bodies and both dialects are made from it, below."""

    model: str  # the deployment's name
    model_family: str = field(default="", kw_only=True)  # what it is, where its name does not say
    instructions: str = field(repr=False)
    voices: Mapping[Dialect, Voice]
    modalities: tuple[str, ...] = ("audio", "text")
    transcription_model: str = "gpt-4o-mini-transcribe"  # a deployment's name, and for GA alone
    turn_detection: TurnDetection = field(default_factory=TurnDetection)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)  # may hold an MCP server's credentials
    ttl_s: int = 60


@dataclass(frozen=True, slots=True)
class EphemeralGrant:
    """Azure minted: the browser may connect with `token`.

    `expires_in_s` is the lifetime left at `received_at_s` of our monotonic clock, reckoned by the `Date` of Azure's
    answer. `clock_skew_s` is our wall clock minus Azure's; None where the answer had no usable `Date`.
    """

    strategy: str
    token: SecretStr
    expires_at: datetime  # UTC
    expires_in_s: float
    received_at_s: float
    endpoint: str  # the base URL that minted; media goes there
    dialect: Dialect
    voice: str
    clock_skew_s: float | None = None
    resource: str = ""  # the name of the resource that minted


@dataclass(frozen=True, slots=True)
class ProxyGrant:
    """Nothing was minted: the broker's WebSocket proxy carries the talk."""

    strategy: str = "websocket_proxy"
    resource: str = ""  # chosen when the talk connects


Grant = EphemeralGrant | ProxyGrant


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one strategy did in one request.

    `outcome` is `minted`, `granted` (by the proxy), `skipped`, `undone` (another resource was faster) or a
    `MintError.outcome`. `why` is the broker's own sentence. `tries` counts HTTP attempts.
    """

    strategy: str
    outcome: str
    duration_ms: float
    why: str = ""
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    tries: int = 0
    resource: str = ""


def ga_client_secret(spec: SessionSpec) -> dict[str, Any]:
    """The body of GA's mint: `expires_after` and the nested session."""
    return {
        "expires_after": {"anchor": "created_at", "seconds": spec.ttl_s},
        "session": {"type": "realtime", "model": spec.model, **ga_session(spec)},
    }


def ga_session(spec: SessionSpec) -> dict[str, Any]:
    """GA's session fields without `type` and `model`. GA accepts one modality: audio, where both are wanted."""
    session: dict[str, Any] = {
        "instructions": spec.instructions,
        "output_modalities": ["audio" if "audio" in spec.modalities else "text"],
        "audio": {
            "input": {
                "transcription": {"model": spec.transcription_model},
                "turn_detection": _server_vad(spec),
            },
            "output": {"voice": spec.voices["ga"]},
        },
    }
    return session | _tools(spec)


def flat_session(spec: SessionSpec) -> dict[str, Any]:
    """The flat body of the first version's mint routes."""
    session: dict[str, Any] = {
        "model": spec.model,
        "modalities": list(spec.modalities),
        "instructions": spec.instructions,
        "voice": voice_name(spec.voices["preview"]),
        "input_audio_transcription": {"model": _OPENAI_TRANSCRIPTION},
        "turn_detection": _server_vad(spec),
    }
    return session | _tools(spec)


def ga_realtime_session(spec: SessionSpec) -> dict[str, Any]:
    """The session of a `session.update` on GA's WebSocket. Both audio formats are stated: PCM16 at 24 kHz."""
    session = ga_session(spec)
    audio_format = {"type": "audio/pcm", "rate": _PCM_RATE_HZ}
    for direction in session["audio"].values():
        direction["format"] = dict(audio_format)
    return {"type": "realtime", **session}


def voice_live_session(spec: SessionSpec) -> dict[str, Any]:
    """The session of a `session.update` on Voice Live's WebSocket: flat, with its own voice and noise filters."""
    session = flat_session(spec)
    del session["model"]  # the URL names it
    return {
        **session,
        "input_audio_transcription": {"model": voice_live_transcription(spec.model_family or spec.model)},
        "voice": _voice_live_voice(spec.voices["preview"]),
        "input_audio_format": "pcm16",
        "output_audio_format": "pcm16",
        "input_audio_sampling_rate": _PCM_RATE_HZ,
        "input_audio_noise_reduction": {"type": "azure_deep_noise_suppression"},
        "input_audio_echo_cancellation": {"type": "server_echo_cancellation"},
    }


def voice_live_transcription(model: str) -> str:
    """The model Voice Live transcribes with: OpenAI's work with `gpt-realtime*` alone (docs/azure.md §6.2).

    `model` is a deployment's name, or the family of what is deployed.
    """
    return _OPENAI_TRANSCRIPTION if model.startswith("gpt-realtime") else "azure-speech"


def _voice_live_voice(voice: Voice) -> Voice:
    return {"type": "azure-standard", "name": voice} if isinstance(voice, str) else dict(voice)


def _server_vad(spec: SessionSpec) -> dict[str, Any]:
    detection = spec.turn_detection
    return {
        "type": "server_vad",
        "threshold": detection.threshold,
        "prefix_padding_ms": detection.prefix_padding_ms,
        "silence_duration_ms": detection.silence_duration_ms,
    }


def _tools(spec: SessionSpec) -> dict[str, Any]:
    return {"tools": [dict(tool) for tool in spec.tools]} if spec.tools else {}
