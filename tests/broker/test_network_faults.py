"""Faults below HTTP: names, connections, TLS; and redirects, which would carry the key to another host."""

import contextlib
import functools
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import connect

from strategies.transport import BoundedResolver, Lookup, make_transport
from tests.conftest import StartBroker
from tests.support.machine import retry_if_host_busy
from tests.support.plans import assert_usable
from tests.support.sockets import refused_port
from tests.support.tls import tls_files
from token_broker.simulator import RunningSimulator, serve

BUDGET_S = 1.5
SLACK_S = 0.25
OPENAI = {"ga", "direct_deployment"}  # ask AZURE_OPENAI_ENDPOINT
UNIFIED = {"project", "unified"}  # ask AZURE_VOICELIVE_ENDPOINT


@contextlib.asynccontextmanager
async def _no_such_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    def look_up(*_arguments: Any, **_options: Any) -> list[tuple[Any, ...]]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    _look_names_up_by(look_up, monkeypatch)
    yield "https://no-such-host.example.com"


@contextlib.asynccontextmanager
async def _name_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    released = threading.Event()

    def look_up(*_arguments: Any, **_options: Any) -> list[tuple[Any, ...]]:
        released.wait(30)
        raise OSError("no such name")

    _look_names_up_by(look_up, monkeypatch)
    try:
        yield "https://hangs.example.com"
    finally:
        released.set()


@contextlib.asynccontextmanager
async def _refusing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    with refused_port() as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def _untrusted_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    async with serve(tls=tls_files(trustme.CA(), tmp_path)) as azure:
        yield azure.base_url
        assert azure.requests == [], "the key went to a server whose certificate nobody trusts"


@contextlib.asynccontextmanager
async def _plain_text_where_tls_is_expected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    async with serve() as azure:
        yield azure.base_url.replace("http://", "https://")


def _look_names_up_by(look_up: Lookup, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = functools.partial(make_transport, resolver=BoundedResolver(lookup=look_up))
    monkeypatch.setattr("token_broker.bootstrap.make_transport", shipped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "outcome"),
    [
        (_no_such_name, "transient"),
        (_name_that_hangs, "timeout"),
        (_refusing, "transient"),
        (_untrusted_certificate, "transient"),
        (_plain_text_where_tls_is_expected, "transient"),
    ],
    ids=["unknown-name", "name-lookup-hangs", "refused", "untrusted-certificate", "no-tls"],
)
@pytest.mark.parametrize("where", ["openai", "unified", "both"])
@retry_if_host_busy()
async def test_unreachable_host_is_replaced(
    *,
    peer: Any,
    outcome: str,
    where: str,
    azure: RunningSimulator,
    start_broker: StartBroker,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    async with peer(monkeypatch, tmp_path) as bad_url:
        unified = azure.base_url if where == "openai" else bad_url
        openai = azure.base_url if where == "unified" else bad_url
        order = ("ga", "direct_deployment", "project", "unified", "websocket_proxy")
        if where == "unified":
            order = ("project", "unified", "ga", "direct_deployment", "websocket_proxy")

        broker = await start_broker(unified, openai_endpoint=openai, token_strategies=order, token_budget_s=BUDGET_S)
        answer = await broker.token()
        assert answer.took_s < BUDGET_S + SLACK_S
        assert_usable(answer.plan, broker, azure)
        winner = {"openai": "project", "unified": "ga", "both": "websocket_proxy"}[where]
        assert answer.plan["strategy"] == winner
        failing = {"openai": OPENAI, "unified": UNIFIED, "both": OPENAI | UNIFIED}[where]
        shown = await broker.strategies()
        assert {shown[name]["last_outcome"] for name in failing} == {outcome}


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirect_takes_the_key_nowhere(code: int, azure: RunningSimulator, start_broker: StartBroker) -> None:
    async with serve() as elsewhere:
        broker = await start_broker(azure)
        with azure.fault("redirect", location=f"{elsewhere.base_url}/openai/v1/realtime/client_secrets", code=code):
            plan = await broker.plan()
        assert_usable(plan, broker, azure)
        assert plan["degraded"]
        assert elsewhere.requests == []


async def test_trusted_certificate_serves_all(
    start_broker: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    async with serve(tls=tls_files(authority, tmp_path)) as azure:
        broker = await start_broker(azure)
        plan = await broker.plan()
        assert_usable(plan, broker, azure)
        assert plan["strategy"] == "ga"
        proxy = plan["connections"][-1]
        async with connect(proxy["url"], subprotocols=proxy["protocols"], proxy=None) as talk:
            assert json.loads(await talk.recv())["type"] == "broker.ready"
