"""The agents: their voices, instructions and tools, and the session spec that every path asks Azure for."""

import asyncio
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError

from strategies.base import Dialect, SessionSpec
from strategies.chain import SpecSupplier
from token_broker.memory.types import Recall
from token_broker.security.owner import Owner
from token_broker.settings import Settings

__all__ = ["Agent", "AgentRegistry", "AgentsFileError", "TalkSpecs", "agents_secrets", "load_agents", "session_spec"]

BUILT_IN = Path(__file__).with_name("agents.toml")

_AgentId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
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


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: _AgentId
    agents: dict[_AgentId, _Entry] = Field(min_length=1, max_length=1000)


class Agent(BaseModel):
    """One agent with everything that it inherits. `voices` has one voice a dialect."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    voices: Mapping[Dialect, str]
    instructions: str = Field(repr=False)
    tools: tuple[dict[str, Any], ...] = Field((), repr=False)

    @property
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


class AgentRegistry:
    """All agents by id, and the default one."""

    def __init__(self, agents: Mapping[str, Agent], default: str) -> None:
        self._agents = dict(agents)
        self.default = default

    def get(self, agent_id: str) -> Agent | None:
        return self._agents.get(agent_id)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._agents)

    def __iter__(self) -> Iterator[Agent]:
        return iter(self._agents.values())


def session_spec(
    agent: Agent, settings: Settings, *, recalled: str = "", modalities: tuple[str, ...] = ("audio", "text")
) -> SessionSpec:
    """The session that every path asks Azure for; `recalled` is the memory's block, or empty."""
    return SessionSpec(
        model=settings.model,
        instructions=f"{agent.instructions}\n\n{recalled}" if recalled else agent.instructions,
        voices=agent.voices,
        modalities=modalities,
        transcription_model=settings.transcription_model,
        tools=agent.tools,
        ttl_s=settings.token_ttl_s,
    )


class TalkSpecs:
    """The specs of one talk's sessions, for whichever agents speak in it.

    What the memory recalls of the owner is asked for once, at the first spec that is needed: a mint may be retried,
    and a talk may change its agent. Without a `recall` the memory is not asked at all.
    """

    def __init__(self, settings: Settings, owner: Owner, recall: Recall | None) -> None:
        self._settings = settings
        self._owner = owner
        self._recall = recall
        self.recalling: asyncio.Task[str] | None = None

    def start(self) -> None:
        """Asks the memory now, so that the answer is there when the first spec is needed."""
        if self.recalling is None and self._recall is not None:
            self.recalling = asyncio.create_task(self._recall.block(self._owner), name="talk-recall")

    def of(self, agent: Agent, modalities: tuple[str, ...] = ("audio", "text")) -> SpecSupplier:
        """A supplier of the agent's spec, which may be called several times."""

        async def supply() -> SessionSpec:
            self.start()
            # Shielded: an attempt that overruns its share is cancelled, and the next one still needs the answer.
            recalled = "" if self.recalling is None else await asyncio.shield(self.recalling)
            return session_spec(agent, self._settings, recalled=recalled, modalities=modalities)

        return supply


def load_agents(path: Path | None = None) -> AgentRegistry:
    """The agents of `path`, or the built-in ones. Raises AgentsFileError, with a line a fault."""
    source = path or BUILT_IN
    try:
        file = _File.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except OSError as error:
        raise AgentsFileError(f"{source}: can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AgentsFileError(f"{source}: is not TOML: {error}") from None
    except ValidationError as error:
        raise AgentsFileError(
            "\n".join(f"{source}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        ) from None
    if file.default not in file.agents:
        raise AgentsFileError(f"{source}: default: there is no agent {file.default!r}")
    return AgentRegistry({agent_id: _resolve(source, file, agent_id) for agent_id in file.agents}, file.default)


def agents_secrets(path: Path | None) -> tuple[SecretStr, ...]:
    """The credentials of all tools in the agents' file; none where it can't be used: its own check reports that."""
    try:
        return tuple(secret for agent in load_agents(path) for secret in agent.secrets)
    except AgentsFileError:
        return ()


def _resolve(source: Path, file: _File, agent_id: str) -> Agent:
    """The agent with its inherited fields filled in, through any number of ancestors."""
    entry = file.agents[agent_id]
    voices, instructions, tools = entry.voices, entry.instructions, entry.tools
    ancestor, seen = entry, {agent_id}
    while ancestor.inherits is not None:
        if ancestor.inherits not in file.agents or ancestor.inherits in seen:
            raise AgentsFileError(
                f"{source}: agents.{agent_id}.inherits: {ancestor.inherits!r} is unknown, or a circle"
            )
        seen.add(ancestor.inherits)
        ancestor = file.agents[ancestor.inherits]
        voices = voices or ancestor.voices
        instructions = instructions or ancestor.instructions
        tools = ancestor.tools if tools is None else tools
    if voices is None or instructions is None:
        missing = "voices" if voices is None else "instructions"
        raise AgentsFileError(f"{source}: agents.{agent_id}: has no {missing}, and inherits none")
    return Agent(id=agent_id, name=entry.name, voices=voices.model_dump(), instructions=instructions, tools=tools or ())
