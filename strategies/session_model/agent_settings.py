"""What an agent says of its session, in words of neither dialect: `AgentSettings`.

`session_fields.py` says where each of them is in each of Azure's bodies. docs/agents.md describes the keys.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    WrapValidator,
)

__all__ = [
    "CLIENT_MAY_SET",
    "LEFT_OUT",
    "AgentSettings",
    "AgentTranscription",
    "AnyDialect",
    "ClientSetting",
    "DetectionSettings",
    "Dialect",
    "Language",
    "ToolChoice",
    "Voice",
    "one_fault",
]

# Whose events and session shape a connection speaks (docs/azure.md §4.1): GA's, or the preview's, which Voice Live
# speaks as well. Plans and `broker.ready` show this value.
Dialect = Literal["ga", "preview"]

AnyDialect = Literal["ga", "preview", "live"]
"""GPT-Live's as well, which is another protocol: nothing is translated between it and the two others."""

Voice = str | Mapping[str, Any]
"""A voice's name, or its object as Azure takes it: GA's `{id}`, Voice Live's `{type, name, …}`."""

Language = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}$")]
"""A language tag as BCP 47 has it: `pt`, `pt-BR`, `zh-Hans-CN`."""

LEFT_OUT: Any = object()
"""Stands for a value that a body or a dialect cannot express, or for none."""

ClientSetting = Literal[
    "turn_detection",
    "noise_reduction",
    "modalities",
    "formats",
    "speed",
    "max_output_tokens",
    # Beyond the default:
    "echo_cancellation",
    "parallel_tool_calls",
    "reasoning_effort",
    "temperature",
    "tool_choice",
    "transcription",
    "voice",
]
"""What `client_may_set` may name."""


def one_fault(sentence: str) -> WrapValidator:
    """For a union: a wrong value has this one fault, not one for each member."""

    def validated(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(sentence) from None

    return WrapValidator(validated)


_Number = Annotated[float, Field(strict=True)]
_Milliseconds = Annotated[int, Field(strict=True)]
_Flag = Annotated[bool, Field(strict=True)]
CLIENT_MAY_SET: frozenset[ClientSetting] = frozenset(
    {"turn_detection", "noise_reduction", "modalities", "formats", "speed", "max_output_tokens"}
)
"""What a client may change of its session where its agent says nothing of it."""

_Hint = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=256)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_LANGUAGES = 'should be a language tag (BCP 47) such as "pt" or "pt-BR", or a list of them'
_TRANSCRIPTION = Discriminator(lambda value: "table" if isinstance(value, Mapping | AgentTranscription) else "switch")


class DetectionSettings(_Model):
    """When the user's turn ends. What is None, Azure decides."""

    type: Literal[
        "server_vad",
        "semantic_vad",
        "azure_semantic_vad",
        "azure_semantic_vad_en",
        "azure_semantic_vad_multilingual",
        "none",
    ] = "server_vad"
    threshold: _Number | None = Field(None, ge=0, le=1)
    prefix_padding_ms: _Milliseconds | None = Field(None, ge=0, le=5_000)
    silence_duration_ms: _Milliseconds | None = Field(None, ge=0, le=10_000)
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    interrupt_response: _Flag | None = None
    create_response: _Flag | None = None


class AgentTranscription(_Model):
    """How the user's speech is transcribed. `model` None: each dialect's default."""

    model: str | None = Field(None, min_length=1, max_length=256)
    language: Annotated[Language | tuple[Language, ...] | None, one_fault(_LANGUAGES)] = None
    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4_096)] | None = None
    phrases: tuple[_Hint, ...] = Field((), max_length=500)


class ToolChoice(_Model):
    """The one function that is called in each answer, or the MCP server whose tools are."""

    type: Literal["function", "mcp"]
    name: str | None = Field(None, min_length=1, max_length=128)
    server_label: str | None = Field(None, min_length=1, max_length=128)


class AgentSettings(_Model):
    """An agent's own settings of the session. What is None is Azure's default, or the broker's (docs/agents.md)."""

    language: Language | None = None
    turn_detection: DetectionSettings | None = None
    transcription: Annotated[
        Annotated[AgentTranscription, Tag("table")] | Annotated[Literal[False] | None, Tag("switch")], _TRANSCRIPTION
    ] = None
    noise_reduction: Literal["near_field", "far_field", "deep", "off"] | None = None
    echo_cancellation: Literal["on", "off"] | None = None
    temperature: _Number | None = Field(None, ge=0, le=1)
    max_output_tokens: Annotated[
        Annotated[int, Field(ge=1, le=4_096, strict=True)] | Literal["inf"] | None,
        one_fault('should be a number from 1 to 4096, or "inf"'),
    ] = None
    speed: _Number | None = Field(None, ge=0.25, le=1.5)
    tool_choice: Annotated[
        Literal["auto", "none", "required"] | ToolChoice | None,
        one_fault('should be "auto", "none", "required", or a table {type = "function", name = "…"}'),
    ] = None
    parallel_tool_calls: _Flag | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    session: Mapping[AnyDialect, Mapping[str, Any]] = Field({}, repr=False)  # merged last, into the dialect's body
