"""The agents' file: reading it, inheriting, and what two keys of it contradict."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from strategies.resources import Resource, is_allowed
from strategies.session_model.agent_settings import LEFT_OUT, AnyDialect, ToolChoice
from strategies.session_model.azure_schema import schema_faults
from strategies.session_model.session_fields import value_at
from token_broker.resources import fault_lines
from token_broker.sessions.agent import (
    OFF,
    Agent,
    AgentId,
    AgentKeys,
    FoundryAgent,
    FoundryAgentKeys,
    Guardrail,
    GuardrailKeys,
    SummaryHook,
    Text,
    checked_voice,
)
from token_broker.sessions.agent_tools import FunctionTool, McpTool, tool_faults

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

BUILT_IN = Path(__file__).with_name("agents.toml")

_AZURE_VOICE = re.compile(r"[a-z]{2,3}-[A-Za-z]{2,4}-.*")
_VOICE_FIELDS: Mapping[AnyDialect, str] = {
    "ga": "audio.output.voice",
    "preview": "voice",
    "live": "audio.output.voice",
}
# Raw fields that have a key of their own, because the broker has to know them.
_OWN_KEYS: Mapping[AnyDialect, Mapping[str, str]] = {
    "ga": {
        "type": "",
        "model": "model",
        "instructions": "instructions",
        "tools": "tools",
        "audio.output.voice": "voices.ga",
    },
    "preview": {
        "model": "model",
        "instructions": "instructions",
        "tools": "tools",
        "voice": "voices.preview",
    },
    "live": {
        "model": "model",
        "instructions": "instructions",
        "delegation.responses.tools": "tools",
        "audio": "voices.live",
        "client": "",
        "input": "",
    },
}


class AgentsFileError(ValueError):
    """The agents' file can't be used; the message has a line a fault."""


_Voice = Annotated[Any, AfterValidator(checked_voice)]


class _Voices(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ga: _Voice = None
    preview: _Voice = None
    live: _Voice = None


class _Entry(AgentKeys):
    """One agent as the file has it: what it doesn't state is inherited."""

    name: Text
    inherits: AgentId | None = None
    voices: _Voices | None = None
    instructions: Text | None = Field(None, repr=False)
    guardrail: Annotated[GuardrailKeys | None, OFF] = None
    foundry_agent: Annotated[FoundryAgentKeys | None, OFF] = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: AgentId
    agents: dict[AgentId, _Entry] = Field(min_length=1, max_length=1000)


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
    agents = {agent_id: _resolve(source, file, agent_id) for agent_id in file.agents}
    faults = [
        f"{source}: agents.{agent.id}.{fault}" for agent in agents.values() for fault in _contradictions(agent, agents)
    ]
    if faults:
        raise AgentsFileError("\n".join(faults))
    return AgentRegistry(agents, file.default)


def ensure_resources(agents: AgentRegistry, resources: Sequence[Resource]) -> None:
    """Raises AgentsFileError, with a line for each agent whose zones and resources match none of `resources`.

    And one for each guardrail of an agent that speaks GPT-Live, which answers by itself.
    """
    known = ", ".join(f"{each.name} (zone {each.zone})" if each.zone else each.name for each in resources)
    faults = [
        f"agents.{agent.id}: zones and resources match none of the Azure resources: {known}"
        for agent in agents.values()
        if resources and not any(is_allowed(each, agent.wanted("")) for each in resources)
    ]
    faults += [
        f"agents.{agent.id}.guardrail: GPT-Live answers while it listens, so nothing can be held back for a guardrail"
        for agent in agents.values()
        if agent.guardrail is not None and agent.speaks_live(resources)
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
        if found.get(needed) is None:
            raise AgentsFileError(f"{source}: agents.{agent_id}: has no {needed}, and inherits none")
    for dialect in ("ga", "preview"):
        if found["voices"].get(dialect) is None:
            raise AgentsFileError(f"{source}: agents.{agent_id}.voices.{dialect}: missing, and none is inherited")
    permitted = file.agents if found.get("handoff_to") is None else found["handoff_to"]
    others = tuple(each for each in permitted if each != agent_id)
    try:
        return Agent(id=agent_id, name=entry.name, **found, handoff_ids=others)
    except ValidationError as error:  # what is needed of a table, and no entry of the line states
        lines = fault_lines(source, error, Agent, found)
        prefix = f"{source}: "
        raise AgentsFileError(
            "\n".join(f"{prefix}agents.{agent_id}.{line.removeprefix(prefix)}" for line in lines)
        ) from None


def _stated(entry: _Entry) -> dict[str, Any]:
    """The keys that the entry states. Tools stay what they were validated as: their secrets are resolved already."""
    keys = entry.model_dump(exclude={"name", "inherits", "tools"}, exclude_unset=True)
    return {**keys, "tools": entry.tools} if "tools" in entry.model_fields_set else keys


def _inherited(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """An ancestor's fields with `own` laid over them: tables key by key, everything else, voices too, as a whole.

    What belongs to a thing that is replaced isn't inherited: the family of another model, the values of another type
    of turn detection.
    """
    theirs = dict(theirs)
    if "model" in own:
        theirs.pop("model_family", None)
    merged = {**theirs, **own}
    for name, table in own.items():
        below = theirs.get(name)
        if not isinstance(table, Mapping) or not isinstance(below, Mapping):
            continue
        if name == "voices":
            merged[name] = {**below, **table}
        elif table.get("type", below.get("type")) == below.get("type"):
            merged[name] = _inherited(below, table)
    return merged


def _contradictions(agent: Agent, agents: Mapping[str, Agent]) -> Iterator[str]:
    """What cannot be meant, as `key: why`."""
    if agent.guardrail is not None and agent.transcription is False:
        yield "transcription: is false, and the guardrail sees the user's words as it writes them"
    if agent.guardrail is not None and "transcription" in agent.client_may_set:
        yield "client_may_set: has transcription, and the guardrail sees the user's words as it writes them"
    for agent_id in agent.handoff_to or ():
        if agent_id not in agents:
            yield f"handoff_to: there is no agent {agent_id!r}; there are {', '.join(agents)}"
    yield from tool_faults(agent.tools, agent.builtin_tools)
    if isinstance(agent.tool_choice, ToolChoice):
        yield from _choice_faults(agent, agent.tool_choice)
    yield from _voice_faults(agent)
    for dialect, overlay in agent.session.items():
        for path, key in _OWN_KEYS[dialect].items():
            if value_at(overlay, tuple(path.split("."))) is not LEFT_OUT:
                yield f"session.{dialect}.{path}: " + (f"say it by the key {key}" if key else "is the broker's own")
        faults = schema_faults(overlay, dialect)
        yield from (f"session.{dialect}.{fault}" for fault in faults)
        try:
            json.dumps(overlay, allow_nan=False)
        except (TypeError, ValueError):  # TOML has times, infinities and NaN
            if not faults:
                yield f"session.{dialect}: has a value that JSON has not"


def _choice_faults(agent: Agent, choice: ToolChoice) -> Iterator[str]:
    names = {tool.name for tool in agent.tools if isinstance(tool, FunctionTool)} | set(agent.builtin_tools)
    labels = {tool.server_label for tool in agent.tools if isinstance(tool, McpTool)}
    if choice.type == "function" and choice.name not in names:
        yield f"tool_choice: there is no function {choice.name!r}; the agent has {', '.join(sorted(names)) or 'none'}"
    if choice.type == "mcp" and choice.server_label not in labels:
        yield (
            f"tool_choice: there is no MCP server {choice.server_label!r}; "
            f"the agent has {', '.join(sorted(labels)) or 'none'}"
        )


def _voice_faults(agent: Agent) -> Iterator[str]:
    own = agent.voices["ga"]
    if isinstance(own, str) and _AZURE_VOICE.fullmatch(own):
        yield f"voices.ga: {own} is a voice of Azure's, which only Voice Live has: put it into voices.preview"
    for dialect, voice in agent.voices.items():
        if isinstance(voice, str):
            continue
        needed = "type" if dialect == "preview" else "id"
        if needed not in voice:
            yield f"voices.{dialect}.{needed}: missing; a table has it"
        yield from (
            f"voices.{dialect}{fault.removeprefix(_VOICE_FIELDS[dialect])}"
            for fault in schema_faults(dict(voice), dialect, at=_VOICE_FIELDS[dialect])
        )
