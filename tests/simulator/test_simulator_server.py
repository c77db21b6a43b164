"""Where and how a simulator runs: in a thread, over TLS, on a port that is taken, and how it stops."""

import asyncio
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from token_broker.simulator import SimulatorConfig, run_in_thread, serve
from token_broker.simulator.server import TlsFiles

MINT = "/openai/realtime/client_secrets?api-version=2025-10-01"


def test_thread_serves_callers_without_loop() -> None:
    with run_in_thread() as azure:
        answer = httpx.post(azure.base_url + MINT, json={"model": "gpt-realtime"}, headers={"api-key": "simulated-key"})
        assert answer.status_code == 200
        with azure.fault("status", code=503):
            assert httpx.post(azure.base_url + MINT, json={}).status_code == 503
        assert [entry.fault for entry in azure.requests] == [None, "status"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(azure.base_url)


def test_thread_reports_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"), run_in_thread(port=port):
            pass


async def test_simulator_serves_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    tls = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with serve(tls=tls) as azure, httpx.AsyncClient(verify=trusting, base_url=azure.base_url) as client:
        assert azure.base_url.startswith("https://")
        answer = await client.post(MINT, json={"model": "gpt-realtime"}, headers={"api-key": "simulated-key"})
    assert answer.status_code == 200


async def test_stop_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    async with serve(SimulatorConfig()) as azure:
        azure.set_faults({"match": "/", "fault": "hang"})
        async with httpx.AsyncClient(base_url=azure.base_url, timeout=0.2) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/")
    assert asyncio.all_tasks() == before


async def test_request_log_is_bounded() -> None:
    async with serve(SimulatorConfig(max_remembered_requests=3)) as azure:
        async with httpx.AsyncClient(base_url=azure.base_url) as client:
            for number in range(5):
                await client.get(f"/{number}")
        assert [entry.path for entry in azure.requests] == ["/2", "/3", "/4"]
