"""GA's nested session configuration, as `client_secrets` and `session.update` take it, and as Azure gives it back.

Agrees with the `openai` package's `RealtimeSessionCreateRequestParam`; what is stricter is Azure's
(docs/azure.md §4.3): ten voices, exactly one output modality.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from token_broker.simulator.session_bodies.check import Strict
from token_broker.simulator.session_bodies.persona import DEFAULT_PERSONA, instructions_or_persona

# A closed list: Azure refuses an unknown voice, where the package's type takes any string.
GaVoice = Literal["alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"]
DEFAULT_VOICE: GaVoice = "alloy"


class GaCustomVoice(Strict):
    """A voice that was made for this customer."""

    id: str = Field(pattern=r"^voice_\w+$")


OutputVoice = Annotated[
    Annotated[GaVoice, Tag("word")] | Annotated[GaCustomVoice, Tag("object")],
    Discriminator(lambda value: "object" if isinstance(value, dict) else "word"),
]


class Pcm(Strict):
    """24 kHz, 16 bit, mono, little endian."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class G711(Strict):
    """Telephony's 8 kHz, a byte a sample: µ-law or A-law."""

    type: Literal["audio/pcmu", "audio/pcma"]


def _format_kind(value: object) -> str:
    """G.711 is told by its `type`; without one it is PCM."""
    kind = value.get("type", "audio/pcm") if isinstance(value, dict) else getattr(value, "type", "audio/pcm")
    return "pcm" if kind == "audio/pcm" else "g711"


Format = Annotated[Annotated[Pcm, Tag("pcm")] | Annotated[G711, Tag("g711")], Discriminator(_format_kind)]


class ServerVad(Strict):
    """Turns told by the loudness of what comes in."""

    type: Literal["server_vad"]
    # The defaults as recorded: a client's bare `server_vad` replaces an agent's own values with these.
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5000)
    silence_duration_ms: int = Field(default=200, ge=0, le=10_000)
    idle_timeout_ms: int | None = Field(default=None, ge=5000, le=30_000)
    create_response: bool = True
    interrupt_response: bool = True


class SemanticVad(Strict):
    """Turns told by what is said."""

    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


TurnDetection = Annotated[ServerVad | SemanticVad, Field(discriminator="type")]


class Transcription(Strict):
    """How the user's speech is transcribed; `model` is a deployment's name."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None
    keywords: list[str] | None = None
    languages: list[str] | None = None


class NoiseReduction(Strict):
    """For which kind of microphone noise is taken out."""

    type: Literal["near_field", "far_field"] | None = None
    strength: float | None = None


class AudioInput(Strict):
    """What comes from the user."""

    format: Format = Pcm()
    noise_reduction: NoiseReduction | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = ServerVad(type="server_vad")


class AudioOutput(Strict):
    """What the model says."""

    format: Format = Pcm()
    voice: OutputVoice = DEFAULT_VOICE
    speed: float = Field(default=1.0, ge=0.25, le=1.5)


class Audio(Strict):
    """Both directions."""

    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


class FunctionToolBody(Strict):
    """A function that the client runs."""

    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: Any = None


class McpToolBody(Strict):
    """An MCP server's tools."""

    type: Literal["mcp"]
    server_label: str
    allowed_callers: list[Literal["direct", "programmatic"]] | None = None
    allowed_tools: list[str] | dict[str, Any] | None = None
    authorization: str | None = None
    connector_id: str | None = None
    defer_loading: bool | None = None
    headers: dict[str, str] | None = None
    require_approval: Literal["always", "never"] | dict[str, Any] | None = None
    server_description: str | None = None
    server_url: str | None = None
    tunnel_id: str | None = None


Tool = Annotated[FunctionToolBody | McpToolBody, Field(discriminator="type")]


class FunctionChoice(Strict):
    """The one function that must be called."""

    type: Literal["function"]
    name: str


class McpChoice(Strict):
    """A tool of this MCP server must be called."""

    type: Literal["mcp"]
    server_label: str
    name: str | None = None


def word_or_object(value: object) -> str:
    """Which member of a "one word, or an object told by its `type`" union a value is meant for, read or written."""
    if isinstance(value, str):
        return "word"
    return str(value.get("type") if isinstance(value, dict) else getattr(value, "type", None))


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[FunctionChoice, Tag("function")]
    | Annotated[McpChoice, Tag("mcp")],
    Discriminator(word_or_object),
]


class Prompt(Strict):
    """A stored prompt template."""

    id: str
    variables: dict[str, Any] | None = None
    version: str | None = None


class Reasoning(Strict):
    """For models that reason."""

    effort: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class TracingConfiguration(Strict):
    """How traces are named."""

    group_id: str | None = None
    metadata: Any = None
    workflow_name: str | None = None


class TokenLimits(Strict):
    """Limits that hold after truncation."""

    post_instructions: int | None = None


class RetentionRatio(Strict):
    """Truncation that keeps a part of the context."""

    type: Literal["retention_ratio"]
    retention_ratio: float = Field(ge=0, le=1)
    token_limits: TokenLimits | None = None


class RealtimeSession(Strict):
    """`session` of a mint or a `session.update`."""

    type: Literal["realtime"]
    model: str | None = None
    # Exactly one: Azure refuses both at once, which the preview asked for.
    output_modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)] = Field(
        default=["audio"]
    )
    instructions: Annotated[str, AfterValidator(instructions_or_persona)] = DEFAULT_PERSONA
    audio: Audio = Audio()
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=4096)] | Literal["inf"] = "inf"
    parallel_tool_calls: bool | None = None
    prompt: Prompt | None = None
    reasoning: Reasoning | None = None
    tool_choice: ToolChoice = "auto"
    tools: list[Tool] = Field(default=[])
    tracing: Literal["auto"] | TracingConfiguration | None = None
    truncation: Literal["auto", "disabled"] | RetentionRatio = "auto"


class TranscriptionAudio(Strict):
    """One direction alone."""

    input: AudioInput = AudioInput()


class TranscriptionSession(Strict):
    """A session that only transcribes. It can be minted; this simulator does not open it."""

    type: Literal["transcription"]
    audio: TranscriptionAudio = TranscriptionAudio()
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = None


class ExpiresAfter(Strict):
    """The life that is asked for."""

    anchor: Literal["created_at"] = "created_at"
    # Azure's bounds (docs/azure.md §2.1).
    seconds: int | None = Field(default=None, ge=10, le=7200)


class GaMintRequest(Strict):
    """Body of `POST /openai/v1/realtime/client_secrets`."""

    session: Annotated[RealtimeSession | TranscriptionSession, Field(discriminator="type")]
    expires_after: ExpiresAfter = ExpiresAfter()


def session_object(session: RealtimeSession | TranscriptionSession, session_id: str) -> dict[str, Any]:
    """The session as Azure states it: every field, defaults included (docs/azure.md §2.1).

    `expires_at` is 0, as in the answer of a mint; a talk puts its own there.
    """
    stated = session.model_dump(mode="json")
    # Hints beyond these are taken, and the echo leaves them out (docs/azure.md §4.5).
    if (transcription := stated["audio"]["input"]["transcription"]) is not None:
        stated["audio"]["input"]["transcription"] = {
            name: transcription[name] for name in ("model", "language", "prompt")
        }
    if (reduction := stated["audio"]["input"]["noise_reduction"]) is not None:
        stated["audio"]["input"]["noise_reduction"] = {"type": reduction["type"]}
    # A model without reasoning does not state these.
    for optional in ("reasoning", "parallel_tool_calls"):
        if stated.get(optional, 0) is None:
            del stated[optional]
    kind = "session" if isinstance(session, RealtimeSession) else "transcription_session"
    return {"object": f"realtime.{kind}", "id": session_id, "expires_at": 0} | stated
