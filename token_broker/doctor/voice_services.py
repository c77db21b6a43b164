"""Finds out which of Azure's voice services without a mint a resource has: opens a socket of each, and says nothing."""

import asyncio
import time
from collections.abc import Iterable

from strategies.errors import MintError, TimedOutError
from strategies.resources import Resource
from token_broker.azure import add_agents_routes, control_routes
from token_broker.doctor.checks import Check, CheckStatus
from token_broker.doctor.hosts import ms_since
from token_broker.doctor.verdicts import AzureNames, judge_error
from token_broker.relay.azure.connector import UpstreamConnector
from token_broker.relay.azure.route import Route
from token_broker.relay.media.control_socket import probe_control
from token_broker.sessions.agents import Agent
from token_broker.settings import Settings

__all__ = ["GPT_LIVE", "VOICE_LIVE_WEBRTC", "examine_voice_services"]

VOICE_LIVE_WEBRTC = "voice live webrtc"
GPT_LIVE = "gpt-live"
_LIMIT_S = 6.0
_MISSING = frozenset({400, 404})  # of what the resource, or the model, does not have
_MISSING_OR_REFUSED = frozenset({401, 404})  # another api-version than the one that is served may be a 401


async def examine_voice_services(
    settings: Settings, connector: UpstreamConnector, agents: Iterable[Agent], names: AzureNames
) -> list[Check]:
    """A check of each service, all at once."""
    (resource,) = connector.pool.resources
    asked: list[tuple[str, Route, frozenset[int]]] = []
    if (control := control_routes(settings).get(resource.name)) is not None:
        asked.append((VOICE_LIVE_WEBRTC, control, _MISSING_OR_REFUSED))
    live = f"{resource.target.openai_base}/openai/v1/live/sessions"
    asked.append((GPT_LIVE, Route("gpt_live", "ga", live, lambda _spec: {}, names_model=False), _MISSING))
    add_agents_routes(settings, connector, agents)
    asked += [
        (f"foundry agent {agent_id}", route, frozenset()) for (agent_id, _), route in connector.agents_routes.items()
    ]
    return list(await asyncio.gather(*(_examine(connector, resource, *each, names=names) for each in asked)))


async def _examine(
    connector: UpstreamConnector,
    resource: Resource,
    name: str,
    route: Route,
    missing: frozenset[int],
    *,
    names: AzureNames,
) -> Check:
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(_LIMIT_S):
            await probe_control(connector, {resource.name: route}, resource)
    except TimeoutError:
        return judge_error(name, TimedOutError("no socket in time"), names, ms_since(began_s))
    except MintError as error:
        if error.status in missing:
            return Check(name, CheckStatus.NOTE, f"not offered here ({error.status})", ms_since(began_s))
        check = judge_error(name, error, names, ms_since(began_s))
        status = CheckStatus.FAILED if route.name == "foundry_agent" else CheckStatus.NOTE
        return Check(name, status, check.finding, check.value, check.remediation)
    return Check(name, CheckStatus.OK, "the resource has it", ms_since(began_s))
