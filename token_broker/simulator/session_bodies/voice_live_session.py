"""Voice Live's flat session configuration, as `session.update` takes it (docs/azure.md §6.2).

Agrees with `RequestSession` of the package `azure-ai-voicelive`. What concerns avatars and animation is taken and
ignored: this simulator has no face.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from token_broker.simulator.session_bodies.check import Strict
from token_broker.simulator.session_bodies.flat_session import OPENAI_VOICES, is_azure_voice
from token_broker.simulator.session_bodies.ga_session import FunctionChoice, FunctionTool, word_or_object


def _openai_voice(name: str) -> str:
    if name not in OPENAI_VOICES:
        raise ValueError(f"'{name}' is no OpenAI voice; an Azure voice is an object with a type and a name")
    return name


def _azure_voice(name: str) -> str:
    if not is_azure_voice(name):
        raise ValueError(f"'{name}' is not the name of an Azure voice")
    return name


class OpenAIVoice(Strict):
    """A voice of the model's own."""

    type: Literal["openai"]
    name: Annotated[str, AfterValidator(_openai_voice)]


class NativeVoice(Strict):
    """An Azure voice that the realtime model speaks with."""

    type: Literal["azure-realtime-native"]
    name: str


class _AzureVoice(Strict):
    temperature: float | None = Field(default=None, ge=0, le=1)
    custom_lexicon_url: str | None = None
    custom_text_normalization_url: str | None = None
    prefer_locales: list[str] | None = None
    locale: str | None = None
    style: str | None = None
    pitch: str | None = None
    rate: str | None = None
    volume: str | None = None


class StandardVoice(_AzureVoice):
    """A voice of Azure Speech, the Dragon HD ones among them."""

    type: Literal["azure-standard"]
    name: Annotated[str, AfterValidator(_azure_voice)]


class CustomVoice(_AzureVoice):
    """A voice that was trained for this customer."""

    type: Literal["azure-custom"]
    name: str
    endpoint_id: str


class PersonalVoice(_AzureVoice):
    """A voice that was cloned from a sample."""

    type: Literal["azure-personal"]
    name: str
    model: str


Voice = Annotated[
    Annotated[str, AfterValidator(_openai_voice), Tag("word")]
    | Annotated[OpenAIVoice, Tag("openai")]
    | Annotated[NativeVoice, Tag("azure-realtime-native")]
    | Annotated[StandardVoice, Tag("azure-standard")]
    | Annotated[CustomVoice, Tag("azure-custom")]
    | Annotated[PersonalVoice, Tag("azure-personal")],
    Discriminator(word_or_object),
]


class VoiceLiveVad(Strict):
    """Turns told by loudness or by meaning; this simulator goes by loudness for both."""

    type: Literal["server_vad", "azure_semantic_vad", "azure_semantic_vad_en", "azure_semantic_vad_multilingual"]
    threshold: float = Field(default=0.6, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5000)
    silence_duration_ms: int = Field(default=800, ge=0, le=10_000)
    speech_duration_ms: int | None = None
    end_of_utterance_detection: dict[str, Any] | None = None
    remove_filler_words: bool | None = None
    languages: list[str] | None = None
    auto_truncate: bool | None = None
    create_response: bool = True
    interrupt_response: bool = True


class VoiceLiveTranscription(Strict):
    """How the user's speech is transcribed; Voice Live hosts these models itself."""

    model: str
    language: str | None = None
    custom_speech: dict[str, str] | None = None
    phrase_list: list[str] | None = None


class VoiceLiveNoiseReduction(Strict):
    """Which noise suppression is on."""

    type: Literal["azure_deep_noise_suppression", "near_field", "far_field"]


class EchoCancellation(Strict):
    """Echo of the model's own voice is taken out of what comes in."""

    type: Literal["server_echo_cancellation"]
    reference_source: Literal["server", "client"] | None = None
    channels: int | None = None


class VoiceLiveMcp(Strict):
    """An MCP server's tools."""

    type: Literal["mcp"]
    server_label: str
    server_url: str
    authorization: str | None = None
    headers: dict[str, str] | None = None
    allowed_tools: list[str] | None = None
    require_approval: Literal["never", "always"] | dict[str, list[str]] | None = None


VoiceLiveToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")] | Annotated[FunctionChoice, Tag("function")],
    Discriminator(word_or_object),
]


class VoiceLiveSession(Strict):
    """`session` of a `session.update`."""

    model: str | None = None
    modalities: Annotated[list[Literal["text", "audio", "animation", "avatar"]], Field(min_length=1)] = Field(
        default=["text", "audio"]
    )
    instructions: str = ""
    voice: Voice = StandardVoice(type="azure-standard", name="en-US-AvaNeural")
    input_audio_format: Literal["pcm16"] = "pcm16"
    output_audio_format: Literal["pcm16"] = "pcm16"
    input_audio_sampling_rate: Literal[24000] = 24000
    turn_detection: VoiceLiveVad | None = VoiceLiveVad(type="server_vad")
    input_audio_noise_reduction: VoiceLiveNoiseReduction | None = None
    input_audio_echo_cancellation: EchoCancellation | None = None
    input_audio_transcription: VoiceLiveTranscription | None = None
    output_audio_timestamp_types: list[Literal["word"]] | None = None
    tools: list[Annotated[FunctionTool | VoiceLiveMcp, Field(discriminator="type")]] = Field(default=[])
    tool_choice: VoiceLiveToolChoice = "auto"
    parallel_tool_calls: bool | None = None
    temperature: float = Field(default=0.8, ge=0, le=2)
    max_response_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] = "inf"
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    interim_response: dict[str, Any] | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    animation: dict[str, Any] | None = None
    avatar: dict[str, Any] | None = None


def session_object(session: VoiceLiveSession, session_id: str) -> dict[str, Any]:
    """The session as Voice Live states it: what is set, and the defaults that are not null."""
    return {"id": session_id, "object": "realtime.session"} | session.model_dump(mode="json", exclude_none=True)
