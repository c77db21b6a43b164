"""The agents: their voices, instructions and tools, as the agents' file has them."""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
)

from strategies.base import Dialect
from strategies.resources import Resource, Wanted, is_allowed
from strategies.session_model.agent_settings import CLIENT_MAY_SET, AgentSettings, ClientSetting, Voice
from token_broker.resources import ModelFamily, fault_lines

__all__ = [
    "Agent",
    "AgentRegistry",
    "AgentsFileError",
    "FoundryAgent",
    "Guardrail",
    "SummaryHook",
    "agents_secrets",
    "ensure_resources",
    "load_agents",
]

_VOICE_CHARS = 256
BUILT_IN = Path(__file__).with_name("agents.toml")

_AgentId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
_Names = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=64)], ...], Field(min_length=1, max_length=64)
]
_Greeting = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4_096)]
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=32_768)]


class AgentsFileError(ValueError):
    """The agents' file can't be used; the message has a line a fault."""


def _checked_voice(voice: Any) -> Any:
    if isinstance(voice, str) and 0 < len(voice.strip()) <= _VOICE_CHARS:
        return voice.strip()
    if isinstance(voice, Mapping) and (isinstance(voice.get("id"), str) or isinstance(voice.get("type"), str)):
        return voice
    raise ValueError('should be a name, or a table {id = "voice_…"} for GA and {type = "azure-custom", …} for preview')


_Voice = Annotated[Any, AfterValidator(_checked_voice)]
_OFF = BeforeValidator(lambda value: None if value is False else value)
_Url = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^https?://[^\s/]+", max_length=2_048)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Voices(_Table):
    ga: _Voice = None
    preview: _Voice = None


class Guardrail(_Table):
    """The hook that sees each of the user's words before the answer is asked for.

    `fail`: what a hook that fails, or a transcript that doesn't come, means for the turn.
    """

    url: _Url
    timeout_ms: int = Field(300, ge=50, le=10_000, strict=True)
    fail: Literal["open", "closed"] = "open"


class SummaryHook(_Table):
    """The hook that makes a talk's summary."""

    url: _Url


class FoundryAgent(_Table):
    """A Foundry voice agent that is the upstream; `version` None is its newest."""

    project: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    version: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None


class _Spoken(AgentSettings):
    """What the file and the agent have alike. Only what a file's entry states is inherited."""

    model: _Text | None = None
    model_family: ModelFamily | None = None
    zones: _Names | tuple[()] = ()
    resources: _Names | tuple[()] = ()
    greeting: Annotated[_Greeting | None, _OFF] = None
    client_may_set: frozenset[ClientSetting] = CLIENT_MAY_SET
    handoff_to: tuple[_AgentId, ...] | None = None
    control: Literal["auto", "required"] = "auto"
    guardrail: Annotated[Guardrail | None, _OFF] = None
    builtin_tools: tuple[Literal["recall", "handoff", "end_talk"], ...] = ()
    recall: Literal["start", "every_turn", "off"] = "start"
    summary: Annotated[SummaryHook | None, _OFF] = None
    foundry_agent: Annotated[FoundryAgent | None, _OFF] = None
    tools: tuple[dict[str, Any], ...] = Field((), repr=False)


class _Entry(_Spoken):
    """One agent as the file has it: what it doesn't state is inherited."""

    name: _Text
    inherits: _AgentId | None = None
    voices: _Voices | None = None
    instructions: _Text | None = Field(None, repr=False)
    zones: _Names = ()
    resources: _Names = ()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: _AgentId
    agents: dict[_AgentId, _Entry] = Field(min_length=1, max_length=1000)


class Agent(_Spoken):
    """One agent with everything that it inherits. `voices` has one voice a dialect.

    Empty `zones` and `resources` permit every resource; `model` None is the resource's own. `handoff_to` None permits
    every agent of the file.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    voices: Mapping[Dialect, Voice]
    instructions: str = Field(repr=False)

    @property
    def settings(self) -> AgentSettings:
        """What it says of its session alone."""
        return AgentSettings.model_construct(**{name: getattr(self, name) for name in AgentSettings.model_fields})

    @property
    def declared_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools as Azure's session gets them."""
        return self.tools

    @cached_property
    def sockets_only(self) -> bool:
        """Whether one of the tools has a credential.

        Over WebRTC Azure's events, which show the tools, go straight to the page. So such an agent is part of no mint
        and of no call.
        """
        return any(tool.get("authorization") or tool.get("headers") for tool in self.tools)

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """The credentials of its tools, which must stay out of logs."""
        found: list[Any] = []
        for tool in self.tools:
            headers = tool.get("headers")
            found += [tool.get("authorization"), *(headers.values() if isinstance(headers, dict) else ())]
        return tuple(SecretStr(value) for value in found if isinstance(value, str))

    def wanted(self, session_id: str, *, running: bool = False) -> Wanted:
        """Who asks the pool for a resource: this agent, in that session. `running` is a talk that has to move."""
        return Wanted(session_id, self.id, self.zones, self.resources, running, self.model or "")


class AgentRegistry(dict[str, Agent]):
    """All agents by id, and the id of the default one."""

    def __init__(self, agents: Mapping[str, Agent], default: str) -> None:
        super().__init__(agents)
        self.default = default


def load_agents(path: Path | None = None) -> AgentRegistry:
    """The agents of `path`, or the built-in ones. Raises AgentsFileError, with a line a fault."""
    source = path or BUILT_IN
    try:
        document = tomllib.loads(source.read_text(encoding="utf-8-sig"))
        file = _File.model_validate(document)
    except OSError as error:
        raise AgentsFileError(f"{source}: can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AgentsFileError(f"{source}: is not TOML: {error}") from None
    except ValidationError as error:
        raise AgentsFileError("\n".join(fault_lines(source, error, _File, document))) from None
    if file.default not in file.agents:
        raise AgentsFileError(f"{source}: default: there is no agent {file.default!r}")
    return AgentRegistry({agent_id: _resolve(source, file, agent_id) for agent_id in file.agents}, file.default)


def ensure_resources(agents: AgentRegistry, resources: Sequence[Resource]) -> None:
    """Raises AgentsFileError, with a line for each agent whose zones and resources match none of `resources`."""
    known = ", ".join(f"{each.name} (zone {each.zone})" if each.zone else each.name for each in resources)
    faults = [
        f"agents.{agent.id}: zones and resources match none of the Azure resources: {known}"
        for agent in agents.values()
        if resources and not any(is_allowed(each, agent.wanted("")) for each in resources)
    ]
    if faults:
        raise AgentsFileError("\n".join(faults))


def agents_secrets(path: Path | None) -> tuple[SecretStr, ...]:
    """The credentials of all tools in the agents' file; none where it can't be used: its own check reports that."""
    try:
        return tuple(secret for agent in load_agents(path).values() for secret in agent.secrets)
    except AgentsFileError:
        return ()


def _resolve(source: Path, file: _File, agent_id: str) -> Agent:
    """The agent with its inherited fields filled in, through any number of ancestors."""
    entry = file.agents[agent_id]
    found = _stated(entry)
    ancestor, seen = entry, {agent_id}
    while ancestor.inherits is not None:
        if ancestor.inherits not in file.agents or ancestor.inherits in seen:
            raise AgentsFileError(
                f"{source}: agents.{agent_id}.inherits: {ancestor.inherits!r} is unknown, or a circle"
            )
        seen.add(ancestor.inherits)
        ancestor = file.agents[ancestor.inherits]
        found = _inherited(_stated(ancestor), found)
    for needed in ("voices", "instructions"):
        if needed not in found:
            raise AgentsFileError(f"{source}: agents.{agent_id}: has no {needed}, and inherits none")
    for dialect in ("ga", "preview"):
        if found["voices"].get(dialect) is None:
            raise AgentsFileError(f"{source}: agents.{agent_id}.voices.{dialect}: missing, and none is inherited")
    return Agent(id=agent_id, name=entry.name, **found)


def _stated(entry: _Entry) -> dict[str, Any]:
    return entry.model_dump(exclude={"name", "inherits"}, exclude_unset=True)


def _inherited(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """An ancestor's fields with `own` laid over them: tables key by key, everything else as a whole.

    What belongs to a thing that is replaced isn't inherited: the family of another model, the values of another type
    of turn detection.
    """
    theirs = dict(theirs)
    if "model" in own:
        theirs.pop("model_family", None)
    merged = {**theirs, **own}
    for name, table in own.items():
        below = theirs.get(name)
        if isinstance(table, Mapping) and isinstance(below, Mapping):
            replaced = table.get("type", below.get("type")) != below.get("type")
            merged[name] = (
                dict(table) if replaced else {**below, **table} if name == "voices" else _inherited(below, table)
            )
    return merged
