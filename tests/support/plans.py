"""Checks that a plan can be used, against the simulated Azure that it names."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.broker import RunningBroker
from token_broker.simulator import RunningSimulator

__all__ = ["MINT_PATHS", "assert_usable"]

# Where each strategy mints: prefixes of the simulator's routes.
MINT_PATHS = {
    "ga": "/openai/v1/realtime/client_secrets",
    "direct_deployment": "/openai/deployments/",
    "project": "/api/projects/",
    "unified": "/openai/realtime/client_secrets",
}


def assert_usable(plan: dict[str, Any], broker: RunningBroker, azure: RunningSimulator) -> None:
    """Fails unless the plan can be used now: its token was minted and is valid, and the proxy comes last."""
    proxy = plan["connections"][-1]
    assert proxy["transport"] == "websocket_proxy"
    ticket = broker.signer.read_ticket(proxy["protocols"][1].removeprefix("ticket."))
    assert (ticket.owner.session_id, ticket.agent_id) == (plan["session_id"], plan["agent_id"])
    assert urlsplit(proxy["url"]).path == f"/api/v1/voice/voicelive/{plan['session_id']}"
    assert 0 < proxy["expires_in_s"] <= 180
    if plan["degraded"]:
        _assert_degraded(plan, broker)
    else:
        _assert_minted(plan, broker, azure)


def _assert_degraded(plan: dict[str, Any], broker: RunningBroker) -> None:
    assert plan["strategy"] == "websocket_proxy"
    assert plan["token"] is None
    assert plan["endpoint"] == broker.base_url
    assert [connection["transport"] for connection in plan["connections"]] == ["websocket_proxy"]
    assert plan["expires_at"] == plan["connections"][0]["expires_at"]


def _assert_minted(plan: dict[str, Any], broker: RunningBroker, azure: RunningSimulator) -> None:
    direct, relay = plan["connections"][:2]
    assert (direct["transport"], relay["transport"]) == ("webrtc", "webrtc_relay")
    secret = azure.simulator.resource.secrets.find(direct["token"])
    assert secret is not None, "this Azure did not mint the token, or it has expired"
    assert plan["token"] == direct["token"]
    assert plan["endpoint"] == azure.base_url
    assert direct["url"].startswith(f"{azure.base_url}/openai/v1/realtime/calls")
    assert direct["dialect"] == secret.dialect
    left_s = secret.expires_at - azure.simulator.resource.clock.now()
    assert 0 < direct["expires_in_s"] <= left_s + 2
    stated = datetime.fromisoformat(direct["expires_at"])
    assert abs(stated - datetime.fromtimestamp(secret.expires_at, UTC)) < timedelta(seconds=1)
    claims = broker.signer.read_session_token(relay["token"])
    assert claims.owner.session_id == plan["session_id"]
    assert parse_qs(urlsplit(relay["url"]).query) == {"session_id": [plan["session_id"]]}
    winner = [request for request in azure.requests if request.status == 200 and request.method == "POST"][-1]
    assert winner.path.startswith(MINT_PATHS[plan["strategy"]]), "another strategy minted than the plan says"
