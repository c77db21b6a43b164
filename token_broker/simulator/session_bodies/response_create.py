"""What `response.create` may ask of one response, in each dialect."""

from typing import Any, Literal

from pydantic import Field

from token_broker.simulator.session_bodies import ga_session
from token_broker.simulator.session_bodies.check import Strict
from token_broker.simulator.session_bodies.formats import FlatFormat, VoiceLiveOutputFormat


class GaResponseOutput(Strict):
    """How one response is to sound."""

    format: ga_session.Format | None = None
    voice: ga_session.OutputVoice | None = None


class GaResponseAudio(Strict):
    """`response.audio`."""

    output: GaResponseOutput | None = None


class GaResponse(Strict):
    """`response` of GA's `response.create`."""

    audio: GaResponseAudio | None = None
    conversation: Literal["auto", "none"] | None = None
    input: list[Any] | None = None
    instructions: str | None = None
    max_output_tokens: int | Literal["inf"] | None = None
    metadata: dict[str, str] | None = None
    # One at most, as in a session.
    output_modalities: list[Literal["text", "audio"]] | None = Field(default=None, min_length=1, max_length=1)
    parallel_tool_calls: bool | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    tool_choice: ga_session.ToolChoice | None = None
    tools: list[ga_session.Tool] | None = None


class FlatResponse(Strict):
    """`response` of `response.create` in preview, and, with more, in Voice Live."""

    conversation: Literal["auto", "none"] | None = None
    input: list[Any] | None = None
    instructions: str | None = None
    max_output_tokens: int | Literal["inf"] | None = None
    max_response_output_tokens: int | Literal["inf"] | None = None
    metadata: dict[str, str] | None = None
    modalities: list[Literal["text", "audio", "animation", "avatar"]] | None = Field(default=None, min_length=1)
    output_audio_format: FlatFormat | None = None
    temperature: float | None = None
    tool_choice: ga_session.ToolChoice | str | None = None
    tools: list[ga_session.Tool] | None = None
    voice: Any = None


class VoiceLiveResponse(FlatResponse):
    """`response` of Voice Live's `response.create`."""

    append_input_items: list[Any] | None = None
    cancel_previous: bool | None = None
    commit: bool | None = None
    input_items: list[Any] | None = None
    interim_response: dict[str, Any] | None = None
    invoke_input: dict[str, Any] | None = None
    output_audio_format: VoiceLiveOutputFormat | None = None  # type: ignore[assignment] # more than the preview has
    pre_generated_assistant_message: dict[str, Any] | None = None
    reasoning_effort: str | None = None
