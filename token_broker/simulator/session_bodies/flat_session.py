"""The flat session configuration of the preview API, as the first version's mints take it (docs/azure.md §2.3)."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from token_broker.simulator.session_bodies.check import Strict
from token_broker.simulator.session_bodies.formats import FlatFormat
from token_broker.simulator.session_bodies.ga_session import (
    FunctionToolBody,
    SemanticVad,
    ServerVad,
    TracingConfiguration,
)
from token_broker.simulator.session_bodies.persona import DEFAULT_PERSONA, instructions_or_persona
from token_broker.simulator.session_bodies.voices import known_voice

FlatVoice = Annotated[str, AfterValidator(known_voice)]


class FlatTranscription(Strict):
    """How the user's speech is transcribed."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class FlatNoiseReduction(Strict):
    """For which kind of microphone noise is taken out."""

    type: Literal["near_field", "far_field"]


class FlatSession(Strict):
    """Body of a flat mint, and `session` of the preview socket's `session.update`."""

    model: str | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)] = Field(
        default=["audio", "text"]
    )
    instructions: Annotated[str, AfterValidator(instructions_or_persona)] = DEFAULT_PERSONA
    voice: FlatVoice = "alloy"
    input_audio_format: FlatFormat = "pcm16"
    output_audio_format: FlatFormat = "pcm16"
    input_audio_transcription: FlatTranscription | None = None
    input_audio_noise_reduction: FlatNoiseReduction | None = None
    turn_detection: Annotated[ServerVad | SemanticVad, Field(discriminator="type")] | None = ServerVad(
        type="server_vad"
    )
    tools: list[FunctionToolBody] = Field(default=[])
    tool_choice: str = "auto"
    # OpenAI's bounds for audio models; text models allow more.
    temperature: float = Field(default=0.8, ge=0.6, le=1.2)
    max_response_output_tokens: Annotated[int, Field(ge=1, le=4096)] | Literal["inf"] = "inf"
    speed: float = Field(default=1.0, ge=0.25, le=1.5)
    tracing: Literal["auto"] | TracingConfiguration | None = None


def session_object(session: FlatSession, session_id: str) -> dict[str, Any]:
    """The session as the preview API states it: every field, defaults included."""
    return {"id": session_id, "object": "realtime.session", "expires_at": 0} | session.model_dump(mode="json")
