"""One agent: what it is told, how it speaks and listens, what it may do. docs/agents.md describes each key."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Annotated, Any, Literal, Protocol

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StringConstraints

from strategies.resources import Resource, Wanted, is_allowed
from strategies.session_model.agent_settings import CLIENT_MAY_SET, AgentSettings, AnyDialect, ClientSetting, Voice
from token_broker.resources import ModelFamily, family_of
from token_broker.sessions.agent_tools import (
    BuiltinName,
    FunctionTool,
    HookUrl,
    HttpRun,
    McpTool,
    Tool,
    builtin_declaration,
)

__all__ = [
    "OFF",
    "Agent",
    "AgentId",
    "AgentKeys",
    "FoundryAgent",
    "FoundryAgentKeys",
    "Guardrail",
    "GuardrailKeys",
    "SummaryHook",
    "Text",
    "checked_voice",
]

LIVE_FAMILY = "gpt-live"
_VOICE_CHARS = 256

AgentId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=32_768)]
_Names = tuple[Annotated[str, StringConstraints(min_length=1, max_length=64)], ...]
_Greeting = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4_096)]
_FoundryName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
# `false` switches off what would be inherited.
OFF = BeforeValidator(lambda value: None if value is False else value)


_Some = Annotated[_Names, Field(min_length=1, max_length=64)]


class _AgentTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GuardrailKeys(_AgentTable):
    """A guardrail as an entry of the file states it: the rest is inherited."""

    url: HookUrl | None = Field(None, repr=False)
    timeout_ms: int = Field(300, ge=50, le=10_000, strict=True)
    fail: Literal["open", "closed"] = "open"


class Guardrail(GuardrailKeys):
    """The hook that sees each of the user's words before the answer is asked for.

    `fail`: whether a turn goes on where the hook fails, or no transcript comes.
    """

    url: HookUrl = Field(repr=False)


class SummaryHook(_AgentTable):
    """The hook that makes a talk's summary."""

    url: HookUrl = Field(repr=False)


class FoundryAgentKeys(_AgentTable):
    """A Foundry agent as an entry of the file states it: the rest is inherited."""

    project: _FoundryName | None = None
    name: _FoundryName | None = None
    version: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None


class FoundryAgent(FoundryAgentKeys):
    """A Foundry voice agent that is the upstream; `version` None is its newest."""

    project: _FoundryName
    name: _FoundryName


class AgentKeys(AgentSettings):
    """What the file and the agent have alike."""

    model: Text | None = None
    model_family: ModelFamily | None = None
    zones: _Some = ()
    resources: _Some = ()
    greeting: Annotated[_Greeting | None, OFF] = None
    client_may_set: frozenset[ClientSetting] = CLIENT_MAY_SET
    handoff_to: tuple[AgentId, ...] | None = Field(None, max_length=1000)
    control: Literal["auto", "required"] = "auto"
    builtin_tools: tuple[BuiltinName, ...] = ()
    recall: Literal["start", "every_turn", "off"] = "start"
    summary: Annotated[SummaryHook | None, OFF] = None
    tools: tuple[Tool, ...] = Field((), repr=False, max_length=128)


class Agent(AgentKeys):
    """One agent with everything that it inherits. `voices` has one voice a dialect.

    Empty `zones` and `resources` permit every resource; `model` None is the resource's own. `handoff_to` None permits
    every agent of the file; `handoff_ids` are those that it may hand over to, without itself.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    voices: Mapping[AnyDialect, Voice]
    instructions: str = Field(repr=False)
    handoff_ids: tuple[str, ...] = ()
    guardrail: Guardrail | None = None
    foundry_agent: FoundryAgent | None = None

    @cached_property
    def settings(self) -> AgentSettings:
        """What it says of its session alone."""
        return AgentSettings.model_construct(**{name: getattr(self, name) for name in AgentSettings.model_fields})

    @cached_property
    def declared_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools as Azure's session gets them, with the credentials of MCP servers: never shown to a page."""
        own = [
            tool.declared(with_secrets=True) if isinstance(tool, McpTool) else tool.declared() for tool in self.tools
        ]
        builtin = [
            builtin_declaration(name, agent_ids=self.handoff_ids)
            for name in dict.fromkeys(self.builtin_tools)
            if name != "handoff" or self.handoff_ids  # with nobody to hand over to, there is no such tool
        ]
        return (*own, *builtin)

    @cached_property
    def page_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools of a session that the broker doesn't see: without those that it runs, which nobody would answer."""
        others = (tool for tool in self.tools if isinstance(tool, FunctionTool) and not isinstance(tool.run, HttpRun))
        servers = (tool for tool in self.tools if isinstance(tool, McpTool) and not tool.has_credential)
        return (*(tool.declared() for tool in others), *(tool.declared(with_secrets=False) for tool in servers))

    @cached_property
    def sockets_only(self) -> str:
        """Why it is an agent of WebSockets alone; empty where it isn't.

        Over WebRTC Azure's events, which show the tools, go straight to the page; and what the page says goes straight
        to Azure. So such an agent is part of no mint and of no call.
        """
        if any(isinstance(tool, McpTool) and tool.has_credential for tool in self.tools):
            return "one of its tools has a credential"
        if self.guardrail is not None and self.guardrail.fail == "closed":
            return "its guardrail is closed"
        return ""

    @property
    def unminted(self) -> str:
        """Why nothing is minted for it, and no call is made with what was minted; empty where it is."""
        return "it is defined at Azure" if self.foundry_agent is not None else self.sockets_only

    @cached_property
    def asks_page(self) -> bool:
        """Whether the page answers some of its calls: then it has to get the events that tell of them."""
        return any(
            tool.run == "client" if isinstance(tool, FunctionTool) else tool.require_approval != "never"
            for tool in self.tools
        )

    @cached_property
    def is_seen(self) -> bool:
        """Whether every talk of it has to be seen, so that no plan has an unseen transport."""
        return self.control == "required" or self.guardrail is not None or bool(self.sockets_only)

    def speaks_live(self, resources: Sequence[Resource]) -> bool:
        """Whether GPT-Live is its model, by its own word, by the model's name, or as all of its `resources` have it."""
        if self.model_family is not None or self.model is not None:
            return (self.model_family or family_of(self.model or "")) == LIVE_FAMILY
        families = {each.model_family for each in resources if is_allowed(each, self.wanted(""))}
        return families == {LIVE_FAMILY}

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """The credentials of its tools and hooks, which must stay out of logs."""
        hooks = (
            httpx.URL(hook.url).query.decode("ascii", "replace") for hook in (self.guardrail, self.summary) if hook
        )
        return (
            *(secret for tool in self.tools for secret in tool.secrets),
            *(SecretStr(query) for query in hooks if query),
        )

    @cached_property
    def wanted(self) -> "_Asks":
        """Who asks the pool for a resource: this agent, in the session that it is called with. `running` is a talk that
        has to move.
        """
        return partial(Wanted, agent_id=self.id, zones=self.zones, resources=self.resources, model=self.model or "")


class _Asks(Protocol):
    def __call__(self, session_id: str, *, running: bool = False) -> Wanted: ...


def checked_voice(voice: Any) -> Any:
    """A voice as the file has it: a name, or a table as Azure takes it. Raises ValueError."""
    if isinstance(voice, str) and 0 < len(voice.strip()) <= _VOICE_CHARS:
        return voice.strip()
    if isinstance(voice, Mapping):
        return voice
    raise ValueError("should be a name, or a table as Azure takes it")
