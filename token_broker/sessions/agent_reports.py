"""What is worth an operator's attention about an agent: a start warns of it, `/status` and the doctor show it. Pure."""

from collections.abc import Sequence

from strategies.models import is_classic_whisper
from strategies.resources import Resource, is_allowed
from strategies.session_model.live_session import delegates_to_responses, live_losses
from strategies.session_model.lost_settings import lost_settings
from strategies.session_model.session_fields import Body
from token_broker.sessions.agent import Agent
from token_broker.sessions.agent_tools import delegate_of, tool_doubts
from token_broker.sessions.plans import session_spec
from token_broker.settings import ResourceSettings, Settings

__all__ = ["agent_reports", "bodies_of", "tool_reports"]

_BODIES: dict[Body, str] = {
    "ga_mint": "GA's mint",
    "ga_socket": "GA's socket",
    "voice_live": "Voice Live",
    "flat_mint": "the flat mints",
}
_FLAT_STRATEGIES = frozenset({"direct_deployment", "project", "unified"})


def tool_reports(agent: Agent, settings: Settings, resources: Sequence[Resource]) -> list[str]:
    """A line for each tool that may not do what was meant. They name tools: nothing for `/status`."""
    bodies = _bodies(agent, settings, resources)
    return tool_doubts(
        agent.tools, voice_live_versions=[each.voice_live_version for each, has in bodies if "voice_live" in has]
    )


def agent_reports(agent: Agent, settings: Settings, resources: Sequence[Resource]) -> list[str]:
    """A line for each setting of the agent that some body lacks, or has in another form."""
    if agent.speaks_live(resources):
        return _live_reports(agent, settings)
    bodies = _bodies(agent, settings, resources)
    lines = []
    if agent.transcription and agent.transcription.model and is_classic_whisper(agent.transcription.model):
        lines.append(
            f"transcription.model: {agent.transcription.model} is a classic whisper, which a GA session does not take"
        )
    lost: dict[str, dict[str, list[str]]] = {}
    for each, has in bodies:
        spec = session_spec(agent, settings, each)
        for body in has:
            for setting in lost_settings(spec, body):
                places = lost.setdefault(f"{setting.key} {setting.why}", {}).setdefault(_BODIES[body], [])
                places.append(each.name)
    for what, found in lost.items():
        # With the resources, where it isn't all of them.
        named = (body if len(names) == len(bodies) else f"{body} ({', '.join(names)})" for body, names in found.items())
        lines.append(f"{what}, on {', '.join(named)}")
    return lines


def _live_reports(agent: Agent, settings: Settings) -> list[str]:
    """What GPT-Live's session does not have of the agent, and what nobody would answer there."""
    spec = session_spec(agent, settings)
    lines = [f"{line}, on GPT-Live" for line in live_losses(spec)]
    if agent.recall == "every_turn":
        lines.append("recall is told at the start alone, on GPT-Live")
    if spec.tools and not delegates_to_responses(spec) and delegate_of(agent.tools) is not None:
        lines = [line for line in lines if not line.startswith("tools ")]
    return lines


def _bodies(agent: Agent, settings: Settings, resources: Sequence[Resource]) -> list[tuple[Resource, list[Body]]]:
    known = {each.name: each for each in settings.resources}
    own = [each for each in resources if each.name in known and is_allowed(each, agent.wanted(""))]
    return [(each, bodies_of(agent, known[each.name])) for each in own]


def bodies_of(agent: Agent, resource: ResourceSettings) -> list[Body]:
    """The bodies in which this agent's session may be asked for at the resource."""
    settings = resource.settings
    found: list[Body] = []
    minted = not agent.sockets_only
    if minted and "ga" in settings.token_strategies:
        found.append("ga_mint")
    if "websocket_proxy" in settings.token_strategies:
        found += ["voice_live" if name == "voice_live" else "ga_socket" for name in settings.upstreams]
    if minted and _FLAT_STRATEGIES & set(settings.token_strategies):
        found.append("flat_mint")
    return found
