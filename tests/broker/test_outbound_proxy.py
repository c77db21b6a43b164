"""A broker in a network that only a proxy leads out of: mints, talks, calls, Entra's keys and Zep go through it."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.conftest import StartBroker
from tests.security.fakes import AUDIENCE, TENANT, Key, Tenant
from tests.simulator.phone import Phone
from tests.simulator.support import silence
from tests.support.broker import make_settings, run_broker
from tests.support.forward_proxy import LOGIN, run_forward_proxy
from tests.support.serving import serve_app
from tests.support.sockets import refused_port
from tests.support.tls import tls_files
from tests.support.waiting import eventually
from token_broker.simulator import RunningSimulator, serve
from token_broker.simulator.server import TlsFiles

UNIFIED, DIRECT = "x.services.ai.azure.com", "x.openai.azure.com"
ENTRA, ZEP = "login.microsoftonline.com", "zep.example.com"
BEHIND: dict[str, Any] = {"endpoint_kind": "auto", "auth": "none"}


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TlsFiles:
    """A certificate for every host out there, of an authority that the broker trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return tls_files(authority, tmp_path, UNIFIED, DIRECT, ENTRA, ZEP)


@pytest.fixture
async def outside(certificate: TlsFiles) -> AsyncIterator[RunningSimulator]:
    async with serve(tls=certificate) as azure:
        yield azure
        await azure.until(running=0)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def first_event(plan: dict[str, Any]) -> dict[str, Any]:
    proxy = plan["connections"][-1]
    async with connect(proxy["url"], subprotocols=proxy["protocols"], proxy=None) as talk:
        event: dict[str, Any] = json.loads(await talk.recv())
        return event


@pytest.mark.parametrize("variable", ["BROKER_OUTBOUND_PROXY", "HTTPS_PROXY", "https_proxy"])
async def test_mint_and_talk_leave_by_the_proxy(
    variable: str, outside: RunningSimulator, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = port_of(outside.base_url)
    async with run_forward_proxy({UNIFIED: port, DIRECT: port}, login=LOGIN) as proxy:
        monkeypatch.setenv(variable, proxy.url_with_login)
        with capture_logs() as logs:
            broker = await start_broker(f"https://{UNIFIED}", **BEHIND)
            plan = await broker.plan()
            assert (plan["strategy"], plan["endpoint"]) == ("ga", f"https://{DIRECT}")
            assert (await first_event(plan))["type"] == "broker.ready"
    assert set(proxy.asked) == {f"{DIRECT}:443", f"{UNIFIED}:443"}
    assert [entry["proxy"] for entry in logs if entry["event"] == "outbound_proxy"] == [proxy.url]
    assert "canary" not in str(logs)


async def test_talk_on_ga_leaves_by_the_proxy(outside: RunningSimulator, start_broker: StartBroker) -> None:
    async with run_forward_proxy({DIRECT: port_of(outside.base_url)}) as proxy:
        broker = await start_broker(f"https://{DIRECT}", outbound_proxy=proxy.url, **BEHIND)
        event = await first_event(await broker.plan())
    assert (event["type"], event["upstream"]) == ("broker.ready", "openai_realtime")


@pytest.fixture
async def phone() -> AsyncIterator[Phone]:
    phone = Phone(silence(0.1))
    yield phone
    await phone.hang_up()


async def test_offer_leaves_by_the_proxy(
    phone: Phone, outside: RunningSimulator, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_forward_proxy({DIRECT: port_of(outside.base_url)}, login=LOGIN) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url_with_login)
        broker = await start_broker(f"https://{DIRECT}", **BEHIND)
        session = {"Authorization": f"Bearer {(await broker.plan())['session_token']}"}
        sdp = session | {"Content-Type": "application/sdp"}
        answer = await broker.client.post("/realtime/calls", content=await phone.offer(), headers=sdp)
        # Nothing but the proxy knows where that host is.
        assert (answer.status_code, outside.calls) == (201, 1), answer.text
        assert "a=candidate" in answer.text
        assert (await broker.client.delete(answer.headers["location"], headers=session)).status_code == 204
        await outside.until_calls(0)
    assert set(proxy.asked) == {f"{DIRECT}:443"}


async def test_sideband_joins_by_the_proxy(phone: Phone, outside: RunningSimulator, tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(run_forward_proxy({DIRECT: port_of(outside.base_url)}))
        settings = make_settings(tmp_path, f"https://{DIRECT}", outbound_proxy=proxy.url, **BEHIND)
        # It ends before the proxy does: a sideband that breaks is joined again.
        broker = await stack.enter_async_context(run_broker(settings))
        session = {"Authorization": f"Bearer {(await broker.plan())['session_token']}"}
        sdp = session | {"Content-Type": "application/sdp"}
        # What is asked over HTTP may go through the plan's tunnel; a WebSocket needs one of its own.
        proxy.asked.clear()
        answer = await broker.client.post("/v1/realtime/calls", content=await phone.offer(), headers=sdp)
        assert answer.status_code == 201, answer.text

        async def joined() -> bool:
            return outside.running > 0 and f"{DIRECT}:443" in proxy.asked

        await eventually(joined)
        await broker.client.post(f"{answer.headers['location']}/hangup", headers=session)
        await outside.until_calls(0)


async def test_no_proxy_leaves_azure_to_itself(outside: RunningSimulator, start_broker: StartBroker) -> None:
    async with run_forward_proxy({DIRECT: port_of(outside.base_url)}) as proxy:
        broker = await start_broker(f"https://{DIRECT}", outbound_proxy=proxy.url, no_proxy=(DIRECT,), **BEHIND)
        assert (await broker.plan())["degraded"]
    assert proxy.asked == []


async def talk_refused(plan: dict[str, Any]) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        await first_event(plan)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


@pytest.mark.parametrize("reached", [True, False])
async def test_failing_proxy_is_named_in_the_log(reached: bool, start_broker: StartBroker) -> None:
    async with run_forward_proxy(login=LOGIN) as proxy:
        with refused_port() as port:
            url = proxy.url if reached else f"http://127.0.0.1:{port}"
            with capture_logs() as logs:
                broker = await start_broker(f"https://{UNIFIED}", outbound_proxy=url, retry_attempts=1, **BEHIND)
                assert await talk_refused(await broker.plan()) == 4502
    reasons = {entry["why"] for entry in logs if entry["event"] in {"mint_failed", "upstream_attempt"}}
    expected = "asks for a user and a password (HTTP 407)" if reached else "can't be reached"
    assert f"the proxy {url} {expected}" in reasons


@pytest.mark.slow
async def test_hanging_proxy_holds_nobody_up(start_broker: StartBroker) -> None:
    async with run_forward_proxy(hangs=True) as proxy:
        limits = {"token_budget_s": 1, "attempt_timeout_s": 0.3, "proxy_connect_timeout_s": 1}
        broker = await start_broker(f"https://{UNIFIED}", outbound_proxy=proxy.url, **limits, **BEHIND)
        assert await talk_refused(await broker.plan()) == 4408


async def test_entras_keys_come_by_the_proxy(certificate: TlsFiles, start_broker: StartBroker) -> None:
    key = Key.make("first")
    tenant = Tenant(key, keys=[key.jwk()], base_url=f"https://{ENTRA}")
    tls: dict[str, Any] = {"ssl_certfile": certificate.certificate, "ssl_keyfile": certificate.key}
    async with serve_app(tenant, **tls) as url, run_forward_proxy({ENTRA: port_of(url)}) as proxy:
        broker = await start_broker(
            None,
            outbound_proxy=proxy.url,
            auth="entra",
            entra_tenant_id=TENANT,
            entra_audience=AUDIENCE,
        )
        answer = await broker.token(authorization=f"Bearer {tenant.token()}")
    assert answer.response.json()["code"] == "not_configured", "so the token was taken"
    assert proxy.asked == [f"{ENTRA}:443"]
