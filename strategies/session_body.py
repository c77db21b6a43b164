"""The session bodies that Azure accepts, all made from one `SessionSpec`.

There are two shapes: GA's is nested; the one of the preview, the first version's mint routes and Voice Live is flat
(docs/azure.md §2.1, §2.3, §6.2).
"""

from typing import Any

from strategies.base import SessionSpec

__all__ = [
    "flat_session",
    "ga_client_secret",
    "ga_realtime_session",
    "ga_session",
    "voice_live_session",
    "voice_live_transcription",
]

_PCM_RATE_HZ = 24_000
_OPENAI_TRANSCRIPTION = "whisper-1"  # built into the preview's mints and Voice Live: no deployment


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
        "voice": spec.voices["preview"],
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
        "input_audio_transcription": {"model": voice_live_transcription(spec.model)},
        "voice": {"type": "azure-standard", "name": spec.voices["preview"]},
        "input_audio_format": "pcm16",
        "output_audio_format": "pcm16",
        "input_audio_sampling_rate": _PCM_RATE_HZ,
        "input_audio_noise_reduction": {"type": "azure_deep_noise_suppression"},
        "input_audio_echo_cancellation": {"type": "server_echo_cancellation"},
    }


def voice_live_transcription(model: str) -> str:
    """The model Voice Live transcribes with: OpenAI's work with `gpt-realtime*` alone (docs/azure.md §6.2)."""
    return _OPENAI_TRANSCRIPTION if model.startswith("gpt-realtime") else "azure-speech"


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
