"""Doctor in a closed network: hosts are checked through the proxy, and a proxy that is not used is named."""

import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr

from tests.doctor.support import diagnose, failed, named, settings_for
from tests.support.forward_proxy import LOGIN, run_forward_proxy
from tests.support.sockets import refused_port
from tests.support.tls import tls_files
from token_broker.doctor.checks import CheckStatus, KnownIssue
from token_broker.doctor.hosts import Host
from token_broker.doctor.ways import examine_way
from token_broker.settings import Settings
from token_broker.simulator import RunningSimulator, serve

HOST = "x.openai.azure.com"
CLOSED = f"https://{HOST}"


@pytest.fixture
async def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningSimulator]:
    """An Azure that only a proxy knows the way to."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    async with serve(tls=tls_files(authority, tmp_path, HOST)) as azure:
        yield azure


def port_of(azure: RunningSimulator) -> int:
    return int(azure.base_url.rpartition(":")[2])


@pytest.mark.parametrize("connect", [False, True])
async def test_healthy_azure_behind_a_proxy_passes(outside: RunningSimulator, connect: bool) -> None:
    async with run_forward_proxy({HOST: port_of(outside)}, login=LOGIN) as proxy:
        settings = settings_for(CLOSED, outbound_proxy=SecretStr(proxy.url_with_login))
        report = await diagnose(settings, connect=connect)
    assert report.healthy, report
    assert named(report, f"proxy {HOST}").finding == f"{proxy.url} opens a way"
    assert "TLSv1.3" in named(report, f"tls {HOST}").finding
    assert named(report, "proxy").finding == f"hosts are asked through {proxy.url}"
    assert "canary" not in f"{report.as_json()} {report!r}"


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ({}, "opens no way to the host (HTTP 403)"),
        ({"login": LOGIN}, "asks for a user and a password (HTTP 407)"),
        ({"answer": b"SSH-2.0\r\n\r\n"}, "answers as no HTTP proxy does"),
    ],
)
async def test_refusing_proxy_ends_the_run_early(options: dict[str, Any], finding: str) -> None:
    async with run_forward_proxy(**options) as proxy:
        report = await diagnose(settings_for(CLOSED, outbound_proxy=SecretStr(proxy.url)))
    assert failed(report) == [f"proxy {HOST}"]
    check = named(report, f"proxy {HOST}")
    assert check.finding == f"the proxy {proxy.url} {finding}"
    assert "BROKER_OUTBOUND_PROXY" in check.remediation
    assert named(report, "azure").status is CheckStatus.NOTE


async def test_unreached_proxy_is_named() -> None:
    with refused_port() as port:
        report = await diagnose(settings_for(CLOSED, outbound_proxy=SecretStr(f"http://127.0.0.1:{port}")))
    assert named(report, f"proxy {HOST}").finding == f"the proxy http://127.0.0.1:{port} can't be reached"


async def test_hanging_proxy_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.doctor.ways.STEP_S", 0.2)
    async with run_forward_proxy(hangs=True) as proxy:
        report = await diagnose(settings_for(CLOSED, outbound_proxy=SecretStr(proxy.url)))
    assert named(report, f"proxy {HOST}").known_issue is KnownIssue.CONNECTION_HANG


class _ClosedNetwork(AbstractResolver):
    """Knows this machine alone, like the DNS server of a network that only a proxy leads out of."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        if host != "127.0.0.1":
            raise OSError("no such name")
        return [ResolveResult(hostname=host, host=host, port=port, family=2, proto=6, flags=0)]

    async def close(self) -> None:
        """Nothing to close."""


Unused = Callable[[str, pytest.MonkeyPatch], Settings]


def excepted(proxy: str, _patch: pytest.MonkeyPatch) -> Settings:
    return settings_for(CLOSED, outbound_proxy=SecretStr(proxy), no_proxy=("azure.com",))


def switched_off(proxy: str, _patch: pytest.MonkeyPatch) -> Settings:
    return settings_for(CLOSED, outbound_proxy=SecretStr("off"), https_proxy=SecretStr(proxy))


def named_for_http(proxy: str, patch: pytest.MonkeyPatch) -> Settings:
    patch.setenv("HTTP_PROXY", proxy)
    return settings_for(CLOSED)


def named_for_all(proxy: str, patch: pytest.MonkeyPatch) -> Settings:
    patch.setenv("all_proxy", proxy)
    return settings_for(CLOSED)


@pytest.mark.parametrize(
    ("unused", "what_to_do"),
    [
        (excepted, "take the host out of NO_PROXY"),
        (switched_off, "unset BROKER_OUTBOUND_PROXY"),
        (named_for_http, "set BROKER_OUTBOUND_PROXY to it"),
        (named_for_all, "set BROKER_OUTBOUND_PROXY to it"),
    ],
)
async def test_host_behind_an_unused_proxy_is_told(
    unused: Unused, what_to_do: str, outside: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_forward_proxy({HOST: port_of(outside)}) as proxy:
        settings = unused(proxy.url, monkeypatch)
        tls = ssl.create_default_context()
        (check,) = await examine_way(Host.of(CLOSED), settings, tls=tls, resolver=_ClosedNetwork())
    assert check.finding == f"there is no such name; only the proxy {proxy.url} reaches it"
    assert what_to_do in check.remediation


async def test_unreached_host_hints_at_a_proxy() -> None:
    report = await diagnose(settings_for("https://nobody.invalid"))
    remediation = named(report, "dns nobody.invalid").remediation
    assert "spelling" in remediation
    assert "where a proxy is the only way out, set BROKER_OUTBOUND_PROXY" in remediation


async def test_unused_proxy_is_a_note(azure: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:canary@proxy.example:3128")
    report = await diagnose(settings_for(azure.base_url))
    check = named(report, "proxy")
    assert (check.status, check.finding) == (CheckStatus.NOTE, "http://proxy.example:3128 is not used")
    assert "does not read HTTP_PROXY" in check.remediation
    assert "canary" not in str(report)


async def test_silent_zep_names_the_proxy(azure: RunningSimulator) -> None:
    async with run_forward_proxy() as proxy:
        report = await diagnose(
            settings_for(azure.base_url, outbound_proxy=SecretStr(proxy.url), zep_api_key=SecretStr("z-canary"))
        )
    assert named(report, "zep").finding == f"the proxy {proxy.url} opens no way to the host (HTTP 403)"


async def test_url_is_looked_at_through_the_proxy(outside: RunningSimulator) -> None:
    async with run_forward_proxy({HOST: port_of(outside)}) as proxy:
        report = await diagnose(settings_for(None, outbound_proxy=SecretStr(proxy.url)), url=CLOSED)
    assert named(report, f"proxy {HOST}").status is CheckStatus.OK
    assert named(report, "url healthz").finding == "something other than a broker answers"
    assert {*proxy.asked} == {f"{HOST}:443"}
