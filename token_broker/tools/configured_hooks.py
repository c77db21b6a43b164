"""The hooks that the agents' file names, and the secrets that all of them are signed with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import SecretStr

from token_broker.hooks.secrets import WebhookSecret, parse_webhook_secrets
from token_broker.sessions.agent import Agent
from token_broker.sessions.agent_tools import FunctionTool, HttpRun
from token_broker.settings import Settings, SettingsError

__all__ = ["ConfiguredHook", "configured_hooks", "hook_secrets"]


@dataclass(frozen=True, slots=True)
class ConfiguredHook:
    """A server that is posted to. `name` says which, such as `elena: tool order_status`; its URL may be a secret."""

    name: str
    url: str = field(repr=False)
    headers: Mapping[str, SecretStr] = field(default_factory=dict, repr=False)


def configured_hooks(agents: Iterable[Agent]) -> list[ConfiguredHook]:
    """Every hook of every agent: tools that the broker runs, guardrails, summaries."""
    found = []
    for agent in agents:
        found += [
            ConfiguredHook(f"{agent.id}: tool {tool.name}", tool.run.url, tool.run.headers)
            for tool in agent.tools
            if isinstance(tool, FunctionTool) and isinstance(tool.run, HttpRun)
        ]
        if agent.guardrail is not None:
            found.append(ConfiguredHook(f"{agent.id}: guardrail", agent.guardrail.url))
        if agent.summary is not None:
            found.append(ConfiguredHook(f"{agent.id}: summary", agent.summary.url))
    return found


def hook_secrets(settings: Settings, agents: Iterable[Agent]) -> tuple[WebhookSecret, ...]:
    """The secrets of BROKER_TOOLS_SECRET; none where it is unset and no agent has a hook.

    Raises SettingsError where it is malformed, or missing though some agent has a hook.
    """
    if settings.tools_secret is None:
        if hooks := configured_hooks(agents):
            more = f" (and {len(hooks) - 1} more)" if len(hooks) > 1 else ""
            why = f"BROKER_TOOLS_SECRET: missing; {hooks[0].name}{more} is signed with it"
            raise SettingsError([f'{why}: echo "whsec_$(openssl rand -base64 32)" makes one'])
        return ()
    try:
        return parse_webhook_secrets(settings.tools_secret)
    except ValueError as error:
        raise SettingsError([f"BROKER_TOOLS_SECRET: {error}"]) from None
