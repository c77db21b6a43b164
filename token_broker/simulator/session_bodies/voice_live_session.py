"""Voice Live's flat session configuration, as `session.update` takes it (docs/azure.md §6.2).

Agrees with `RequestSession` of the package `azure-ai-voicelive`. Avatars and animation are taken and ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from token_broker.simulator.session_bodies.check import Strict
from token_broker.simulator.session_bodies.formats import FlatFormat, VoiceLiveOutputFormat
from token_broker.simulator.session_bodies.ga_session import FunctionChoice, FunctionToolBody, word_or_object
from token_broker.simulator.session_bodies.persona import DEFAULT_PERSONA, instructions_or_persona
from token_broker.simulator.session_bodies.voices import OPENAI_VOICES, is_azure_voice


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

    name: Annotated[str, AfterValidator(_openai_voice)]
    type: Literal["openai"]


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
    # Voice Live states every voice as an object, whichever way it was named.
    Annotated[
        str,
        AfterValidator(_openai_voice),
        AfterValidator(lambda name: OpenAIVoice(name=name, type="openai")),
        Tag("word"),
    ]
    | Annotated[OpenAIVoice, Tag("openai")]
    | Annotated[NativeVoice, Tag("azure-realtime-native")]
    | Annotated[StandardVoice, Tag("azure-standard")]
    | Annotated[CustomVoice, Tag("azure-custom")]
    | Annotated[PersonalVoice, Tag("azure-personal")],
    Discriminator(word_or_object),
]


class VoiceLiveVad(Strict):
    """Turns told by loudness or by meaning; this simulator goes by loudness for all of them."""

    type: Literal[
        "server_vad", "semantic_vad", "azure_semantic_vad", "azure_semantic_vad_en", "azure_semantic_vad_multilingual"
    ]
    # The defaults of an update, which are not those that a session starts with (docs/azure.md §4.5).
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=400, ge=0, le=5000)
    silence_duration_ms: int = Field(default=500, ge=0, le=10_000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: int | None = Field(default=None, ge=5000, le=30_000)
    speech_duration_ms: int | None = None
    speech_duration_assistant_speaking_ms: int | None = None
    end_of_utterance_detection: dict[str, Any] | None = None
    auto_truncate: bool = False
    appended_text_after_truncation: str | None = None
    remove_filler_words: bool | None = None
    languages: list[str] | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None


# What a session starts with, as recorded. An update that names no values gets the class's defaults instead.
_FIRST_DETECTION = VoiceLiveVad(type="server_vad", prefix_padding_ms=300, silence_duration_ms=200)


class VoiceLiveTranscription(Strict):
    """How the user's speech is transcribed; Voice Live hosts these models itself."""

    model: str
    language: str | None = None
    prompt: str | None = None
    custom_speech: dict[str, str] | None = None
    phrase_list: list[str] | None = None


class VoiceLiveNoiseReduction(Strict):
    """Which noise suppression is on."""

    type: Literal["azure_deep_noise_suppression", "near_field", "far_field"]


class EchoCancellation(Strict):
    """Echo of the model's own voice is taken out of what comes in."""

    type: Literal["server_echo_cancellation"] = "server_echo_cancellation"
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
    """`session` of a `session.update`. The defaults are those that a session with gpt-realtime starts with."""

    model: str | None = None
    modalities: Annotated[list[Literal["text", "audio", "animation", "avatar"]], Field(min_length=1)] = Field(
        default=["audio"]
    )
    instructions: Annotated[str, AfterValidator(instructions_or_persona)] = DEFAULT_PERSONA
    voice: Voice = OpenAIVoice(name="alloy", type="openai")
    input_audio_format: FlatFormat = "pcm16"
    output_audio_format: VoiceLiveOutputFormat = "pcm16"
    input_audio_transcription: VoiceLiveTranscription | None = None
    input_audio_noise_reduction: VoiceLiveNoiseReduction | None = None
    turn_detection: VoiceLiveVad | None = _FIRST_DETECTION
    tools: list[Annotated[FunctionToolBody | VoiceLiveMcp, Field(discriminator="type")]] = Field(default=[])
    tool_choice: VoiceLiveToolChoice = "auto"
    max_response_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] = "inf"
    input_audio_sampling_rate: Literal[8000, 16000, 22050, 24000, 44100, 48000] = 24000
    animation: dict[str, Any] | None = None
    input_audio_echo_cancellation: EchoCancellation | None = None
    avatar: dict[str, Any] | None = None
    output_audio_timestamp_types: list[Literal["word"]] | None = None
    include: list[str] | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    interim_response: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None


# Stated where they are set; the recorded echo has no nulls for them.
_STATED_IF_SET = ("parallel_tool_calls", "temperature", "reasoning_effort", "interim_response", "metadata")
_DETECTION_STATED_IF_SET = (
    "remove_filler_words",
    "languages",
    "eagerness",
    "speech_duration_assistant_speaking_ms",
)


def session_object(session: VoiceLiveSession, session_id: str) -> dict[str, Any]:
    """The session as Voice Live states it, explicit nulls included. `expires_at` is 0; a talk puts its own there."""
    stated = session.model_dump(mode="json")
    for name in _STATED_IF_SET:
        if stated[name] is None:
            del stated[name]
    if (detection := stated["turn_detection"]) is not None:
        stated["turn_detection"] = {
            name: value
            for name, value in detection.items()
            if name not in _DETECTION_STATED_IF_SET or value is not None
        }
    if stated["input_audio_format"] != "pcm16":
        # G.711 has a rate of its own, whatever was asked for.
        stated["input_audio_sampling_rate"] = 8000
    stated["voice"] = {name: value for name, value in stated["voice"].items() if value is not None}
    stated["tools"] = [{name: value for name, value in tool.items() if value is not None} for tool in stated["tools"]]
    # Stated, and never set by a client: an update that names them is refused.
    unsettable = {"truncation_strategy": None, "greeting": None, "handoff": None}
    hosted = hosted_model(session.model) if session.model else None
    return {"id": session_id} | stated | {"model": hosted, "expires_at": 0, "object": "realtime.session"} | unsettable


def hosted_model(name: str) -> str:
    """The name under which Voice Live states a model: that of what hosts it, not the one that was asked for."""
    return f"{name}-global-standard" if name.startswith("gpt-realtime") and "datazone" not in name else name
