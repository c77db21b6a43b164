"""The bodies that Azure takes for a session, all from one `SessionSpec`.

Two shapes: GA's nested one and the flat one of the preview, of the SOP's mint routes and of Voice Live
(azure-facts.md §1 and §4).
"""

from typing import Any

from strategies.base import SessionSpec

__all__ = ["flat_session", "ga_client_secret", "ga_session"]


def ga_client_secret(spec: SessionSpec) -> dict[str, Any]:
    """The body of GA's mint: `expires_after` and the nested session."""
    return {
        "expires_after": {"anchor": "created_at", "seconds": spec.ttl_s},
        "session": {"type": "realtime", "model": spec.model, **ga_session(spec)},
    }


def ga_session(spec: SessionSpec) -> dict[str, Any]:
    """GA's session fields without `type` and `model`. GA takes one modality: audio where both are asked for."""
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
    """The flat body of the SOP's mint routes."""
    session: dict[str, Any] = {
        "model": spec.model,
        "modalities": list(spec.modalities),
        "instructions": spec.instructions,
        "voice": spec.voices["preview"],
        "input_audio_transcription": {"model": spec.transcription_model},
        "turn_detection": _server_vad(spec),
    }
    return session | _tools(spec)


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
