"""What an agent says of its session and one of Azure's bodies does not have, or has in another form. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from strategies.session_model.agent_settings import LEFT_OUT
from strategies.session_model.session_fields import (
    SESSION_FIELDS,
    AskedSession,
    Body,
    languages_of,
    stated_transcription,
    stated_turn_detection,
)

__all__ = ["LostSetting", "lost_settings"]


@dataclass(frozen=True, slots=True)
class LostSetting:
    """A key that an agent states and a body does not have, or has in another form. `why` completes a sentence."""

    key: str
    body: Body
    why: str


def lost_settings(spec: AskedSession, body: Body) -> Iterator[LostSetting]:
    """What the agent's settings say and the body does not, in the order of the table."""
    stated = spec.settings
    for row in SESSION_FIELDS:
        if row.stated is None or getattr(stated, row.name, None) is None:
            continue
        if row.path_in(body) is None or row.stated(spec, body) is LEFT_OUT:
            yield LostSetting(row.name, body, "is left out")
    if (detection := stated.turn_detection) is not None:
        sent = stated_turn_detection(spec, body) or {}
        if detection.type not in {sent.get("type"), "none"}:
            yield LostSetting("turn_detection.type", body, f"is sent as {sent.get('type')}")
        for name in ("threshold", "prefix_padding_ms", "silence_duration_ms", "eagerness"):
            if getattr(detection, name) is not None and name not in sent:
                yield LostSetting(f"turn_detection.{name}", body, "is left out")
    if body == "flat_mint" and any(tool.get("type") == "mcp" for tool in spec.tools):
        yield LostSetting("tools of MCP servers", body, "are left out")
    if stated.noise_reduction == "deep" and body != "voice_live":
        yield LostSetting("noise_reduction", body, "is sent as near_field")
    yield from _lost_hints(spec, body)


def _lost_hints(spec: AskedSession, body: Body) -> Iterator[LostSetting]:
    """Which hints of the transcription do not reach the body's model."""
    hints = spec.settings.transcription
    sent = stated_transcription(spec, body)
    if not isinstance(sent, dict):
        return
    if hints and hints.model and hints.model != sent["model"]:
        yield LostSetting("transcription.model", body, f"is sent as {sent['model']}")
    languages = languages_of(spec)
    if languages and "language" not in sent and "languages" not in sent:
        key = "transcription.language" if hints and hints.language else "language"
        yield LostSetting(key, body, f"is left out: {sent['model']} takes one language by its two letters")
    if hints and hints.prompt and hints.prompt not in sent.get("prompt", ""):
        yield LostSetting("transcription.prompt", body, f"is left out: {sent['model']} takes none")
    told = {*sent.get("keywords", ()), *sent.get("phrase_list", ())}
    if hints and any(phrase not in told and phrase not in sent.get("prompt", "") for phrase in hints.phrases):
        yield LostSetting("transcription.phrases", body, f"is left out: {sent['model']} takes none")
