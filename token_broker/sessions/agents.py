"""The agents: their voices, instructions and tools, as the agents' file has them."""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError

from strategies.base import Dialect
from strategies.resources import Resource, Wanted, is_allowed
from token_broker.resources import ModelFamily, fault_lines

__all__ = ["Agent", "AgentRegistry", "AgentsFileError", "agents_secrets", "ensure_resources", "load_agents"]

BUILT_IN = Path(__file__).with_name("agents.toml")

_AgentId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
_Names = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=64)], ...], Field(min_length=1, max_length=64)
]
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=32_768)]


class AgentsFileError(ValueError):
    """The agents' file can't be used; the message has a line a fault."""


class _Voices(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ga: _Text
    preview: _Text


class _Entry(BaseModel):
    """One agent as the file has it; a field that is None is inherited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Text
    inherits: _AgentId | None = None
    voices: _Voices | None = None
    instructions: _Text | None = Field(None, repr=False)
    tools: tuple[dict[str, Any], ...] | None = Field(None, repr=False)
    model: _Text | None = None
    model_family: ModelFamily | None = None
    zones: _Names | None = None
    resources: _Names | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: _AgentId
    agents: dict[_AgentId, _Entry] = Field(min_length=1, max_length=1000)


class Agent(BaseModel):
    """One agent with everything that it inherits. `voices` has one voice a dialect.

    Empty `zones` and `resources` permit every resource; `model` None is the resource's own.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    voices: Mapping[Dialect, str]
    instructions: str = Field(repr=False)
    tools: tuple[dict[str, Any], ...] = Field((), repr=False)
    model: str | None = None
    model_family: ModelFamily | None = None
    zones: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()

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
    found = entry.model_dump(exclude={"name", "inherits"}, exclude_none=True)
    ancestor, seen = entry, {agent_id}
    while ancestor.inherits is not None:
        if ancestor.inherits not in file.agents or ancestor.inherits in seen:
            raise AgentsFileError(
                f"{source}: agents.{agent_id}.inherits: {ancestor.inherits!r} is unknown, or a circle"
            )
        seen.add(ancestor.inherits)
        ancestor = file.agents[ancestor.inherits]
        inherited = ancestor.model_dump(exclude={"name", "inherits"}, exclude_none=True)
        if "model" in found:  # the family is the inherited model's: another model has its own
            inherited.pop("model_family", None)
        found = inherited | found
    for needed in ("voices", "instructions"):
        if needed not in found:
            raise AgentsFileError(f"{source}: agents.{agent_id}: has no {needed}, and inherits none")
    return Agent(id=agent_id, name=entry.name, **found)
