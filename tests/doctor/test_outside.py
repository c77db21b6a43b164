"""`--url`: a real broker, and what may stand before it or in its place, checked from outside."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.doctor.support import diagnose, failed, named, settings_for
from tests.support.serving import serve_app
from token_broker.app import create_app
from token_broker.doctor.checks import CheckStatus, KnownIssue, Report
from token_broker.doctor.outside_verdicts import BrokerAnswer, judge_metrics, judge_status, judge_upgrade
from token_broker.simulator import RunningSimulator


def broker(azure: RunningSimulator, tmp_path: Path, **values: Any) -> contextlib.AbstractAsyncContextManager[str]:
    database = SecretStr(f"sqlite+aiosqlite:///{tmp_path}/broker.db")
    settings = settings_for(azure.base_url, database_url=database, **values)
    return serve_app(create_app(settings), lifespan="on")


async def look_at(url: str) -> Report:
    """Doctor's report, on a machine where no Azure is configured."""
    return await diagnose(settings_for(None), url=url)


async def test_healthy_broker_passes_every_check(azure: RunningSimulator, tmp_path: Path) -> None:
    async with broker(azure, tmp_path) as url:
        report = await look_at(url)
    assert report.healthy
    outside = [check for check in report.checks if check.name.startswith("url")]
    assert {check.status for check in outside if check.name != "url metrics"} == {CheckStatus.OK}
    assert named(report, "url proxy").value == "HTTP 426"
    assert named(report, "url websocket").value == "close 4401"
    assert named(report, "url strange origin").status is CheckStatus.OK


async def test_broker_with_failing_azure_is_a_warning(azure: RunningSimulator, tmp_path: Path) -> None:
    azure.set_faults({"match": "/", "fault": "status", "code": 401})
    async with broker(azure, tmp_path) as url:
        await look_at(url)
        report = await look_at(url)
    assert report.healthy  # it still answers with a plan
    assert named(report, "url token").finding == "the plan has the proxy alone: nothing mints"
    assert "not asked after failures: ga" in named(report, "url status").finding


async def test_open_origins_are_a_warning(azure: RunningSimulator, tmp_path: Path) -> None:
    async with broker(azure, tmp_path, allowed_origins=("*",)) as url:
        report = await look_at(url)
    assert named(report, "url strange origin").status is CheckStatus.WARNING


async def test_wrong_public_url_fails(azure: RunningSimulator, tmp_path: Path) -> None:
    async with broker(azure, tmp_path, public_url="https://voice.example") as url:
        report = await look_at(url)
    check = named(report, "url token")
    assert check.status is CheckStatus.FAILED
    assert "BROKER_PUBLIC_URL" in check.remediation


async def test_refused_host_name_is_one_failure(azure: RunningSimulator, tmp_path: Path) -> None:
    database = SecretStr(f"sqlite+aiosqlite:///{tmp_path}/broker.db")
    app = create_app(settings_for(azure.base_url, database_url=database, public_url="https://voice.example"))

    async def reached_otherwise(scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope["headers"] = [(n, b"app.azurecontainerapps.io" if n == b"host" else v) for n, v in scope["headers"]]
        await app(scope, receive, send)

    async with serve_app(reached_otherwise, lifespan="on") as url:
        report = await look_at(url)
    assert failed(report) == ["url host"]
    check = named(report, "url host")
    assert check.value == "HTTP 421"
    assert "https://voice.example" in check.finding
    assert "BROKER_PUBLIC_URL" in check.remediation
    assert named(report, "url healthz").status is CheckStatus.OK  # probes may use any host name


async def test_accepted_forged_principal_fails(azure: RunningSimulator, tmp_path: Path) -> None:
    async with broker(azure, tmp_path, auth="easyauth") as url:
        report = await look_at(url)
    assert failed(report) == ["url forged header"]
    assert "anybody can be anybody" in named(report, "url forged header").finding
    assert named(report, "url token").finding == "the broker demands authentication (BROKER_AUTH)"


async def test_removed_forged_principal_passes(azure: RunningSimulator, tmp_path: Path) -> None:
    app = create_app(
        settings_for(azure.base_url, auth="easyauth", database_url=SecretStr(f"sqlite+aiosqlite:///{tmp_path}/b.db"))
    )

    async def platform(scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope["headers"] = [h for h in scope["headers"] if not h[0].startswith(b"x-ms-client-principal")]
        await app(scope, receive, send)

    async with serve_app(platform, lifespan="on") as url:
        report = await look_at(url)
    assert report.healthy
    assert named(report, "url forged header").status is CheckStatus.OK


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (401, [(b"www-authenticate", b'Bearer realm="app.azurecontainerapps.io"')]),
        (403, []),
        (302, [(b"location", b"https://login.microsoftonline.com/x/oauth2/v2.0/authorize?client_id=y")]),
        (302, [(b"location", b"/.auth/login/aad?post_login_redirect_uri=/")]),
    ],
)
async def test_platform_authentication_is_named(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    async with serve_app(answering(status, headers)) as url:
        report = await look_at(url)
    for name in ("url healthz", "url status", "url token"):
        check = named(report, name)
        assert (check.status, check.known_issue) == (CheckStatus.FAILED, KnownIssue.PLATFORM_UNAUTHORIZED)
        assert "az containerapp auth update" in check.remediation


@pytest.mark.parametrize(
    ("status", "headers", "word"),
    [
        (503, [], "the ingress has no replica to ask"),
        (404, [], "something other than a broker answers"),
        (200, [], "something other than a broker answers"),
        (301, [(b"location", b"https://voice.example/")], "redirected elsewhere"),
    ],
)
async def test_something_other_than_a_broker_fails(status: int, headers: list[tuple[bytes, bytes]], word: str) -> None:
    async with serve_app(answering(status, headers)) as url:
        report = await look_at(url)
    assert word in named(report, "url healthz").finding
    assert not report.healthy


async def test_silent_address_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.doctor.outside.ANSWER_S", 0.3)

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] not in {"http.disconnect", "websocket.disconnect"}:
            pass

    async with serve_app(silent) as url:
        report = await look_at(url)
    assert named(report, "url /healthz").known_issue is KnownIssue.CONNECTION_HANG


def answering(status: int, headers: list[tuple[bytes, bytes]]) -> ASGIApp:
    """An application that answers everything alike."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        await send({"type": f"{kind}.start", "status": status, "headers": headers})
        await send({"type": f"{kind}.body", "body": b""})

    return app


def answer(status: int, body: bytes = b"{}") -> BrokerAnswer:
    return BrokerAnswer(status, {"x-request-id": "x"}, body)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b'{"voicelive_configured": true}', CheckStatus.OK, "reports no fault"),
        (b'{"voicelive_configured": false}', CheckStatus.FAILED, "no Azure endpoint"),
        (b'{"voicelive_configured": true, "outbox": {"dead": 3}}', CheckStatus.WARNING, "3 turns"),
        (
            b'{"voicelive_configured": true, "strategies": [{"name": "ga", "breaker": "open"}]}',
            CheckStatus.WARNING,
            "ga",
        ),
        (b'{"voicelive_configured": true, "strategies": ["x"], "outbox": 7}', CheckStatus.OK, ""),
        (b"[]", CheckStatus.FAILED, "no Azure endpoint"),
        (b"[" * 100_000, CheckStatus.FAILED, "no Azure endpoint"),
    ],
)
def test_status_of_the_broker_is_judged(body: bytes, status: CheckStatus, word: str) -> None:
    check = judge_status(answer(200, body))
    assert check.status is status
    assert word in check.finding


@pytest.mark.parametrize(
    ("close_code", "refused", "status"),
    [
        (4401, None, CheckStatus.OK),
        (1006, None, CheckStatus.WARNING),
        (None, BrokerAnswer(404, {}, b""), CheckStatus.FAILED),
        (None, BrokerAnswer(401, {}, b""), CheckStatus.FAILED),
        (None, None, CheckStatus.FAILED),
    ],
)
def test_upgrade_is_judged(close_code: int | None, refused: BrokerAnswer | None, status: CheckStatus) -> None:
    assert judge_upgrade(close_code, refused).status is status


@pytest.mark.parametrize(("http_status", "status"), [(200, CheckStatus.WARNING), (401, CheckStatus.OK), (404, None)])
def test_public_metrics_are_a_warning(http_status: int, status: CheckStatus | None) -> None:
    check = judge_metrics(answer(http_status))
    assert (check.status if check else None) is status
