"""Doctor against the simulator: healthy it is all green, and each known_issue put into it is named with its remediation."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from tests.doctor.support import Tokens, diagnose, failed, named, settings_for
from token_broker.doctor.checks import CheckStatus, KnownIssue
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve
from token_broker.simulator.server import TlsFiles

MINTS = ["mint ga", "mint direct_deployment", "mint project", "mint unified"]
SOCKETS = ["socket voice_live", "socket openai_realtime"]


async def test_on_a_healthy_resource_every_mark_is_green(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url))
    assert {check.status for check in report.checks} == {CheckStatus.OK}
    names = [check.name for check in report.checks]
    assert [name for name in names if name.startswith(("mint", "socket"))] == MINTS + SOCKETS
    assert named(report, "plan").finding == "ga wins"
    assert named(report, "key").finding == "is this resource's"


async def test_a_silent_talk_is_held_on_each_upstream_and_the_transcription_tried(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url), connect=True)
    for upstream in ("voice_live", "openai_realtime"):
        assert named(report, f"talk {upstream}").status is CheckStatus.OK
        assert named(report, f"transcription {upstream}").status is CheckStatus.OK
    assert report.healthy


@pytest.mark.parametrize(
    ("taken", "turned_on", "status", "word"),
    [
        (True, "off", CheckStatus.OK, "BROKER_DIRECT_WEBSOCKET=on"),
        (True, "on", CheckStatus.OK, ""),
        (False, "off", CheckStatus.NOTE, ""),
        (False, "on", CheckStatus.FAILED, "BROKER_DIRECT_WEBSOCKET=off"),
    ],
)
async def test_the_subprotocol_is_tried_and_decides_what_to_set(
    taken: bool, turned_on: str, status: CheckStatus, word: str
) -> None:
    async with serve(SimulatorConfig(ephemeral_subprotocol=taken)) as azure:
        report = await diagnose(settings_for(azure.base_url, direct_websocket=turned_on), connect=True)
    check = named(report, "direct websocket")
    assert check.status is status
    assert word in check.remediation


@pytest.mark.parametrize(
    ("fault", "known_issue", "remediation"),
    [
        ({"fault": "status", "code": 401}, KnownIssue.UNAUTHORIZED, "az cognitiveservices account keys list"),
        ({"fault": "status", "code": 404}, KnownIssue.MODEL_NOT_FOUND, "East US 2, France Central, Sweden Central"),
        ({"fault": "status", "code": 400}, KnownIssue.BAD_REQUEST, "AZURE_VOICELIVE_ENDPOINT_KIND"),
        (
            {
                "fault": "status",
                "code": 400,
                "body": {"error": {"code": "400", "message": "API version not supported"}},
            },
            KnownIssue.BAD_REQUEST,
            "AZURE_VOICELIVE_API_VERSION",
        ),
        ({"fault": "status", "code": 500}, KnownIssue.SERVER_ERROR, "status page"),
        ({"fault": "status", "code": 503}, KnownIssue.SERVER_ERROR, "status page"),
        ({"fault": "status", "code": 429}, None, "quota"),
        ({"fault": "reset"}, None, "network"),
        ({"fault": "redirect", "location": "https://elsewhere.invalid/"}, None, "the resource's own host"),
    ],
    ids=["401", "404", "400", "api-version", "500", "503", "429", "reset", "redirect"],
)
async def test_each_trouble_is_named_as_the_sop_names_it_with_its_mend(
    azure: RunningSimulator, fault: dict[str, Any], known_issue: KnownIssue | None, remediation: str
) -> None:
    azure.set_faults({"match": "/", **fault})
    report = await diagnose(settings_for(azure.base_url))
    assert not report.healthy
    for name in MINTS + SOCKETS:
        check = named(report, name)
        assert (check.status, check.known_issue) == (CheckStatus.FAILED, known_issue), check
        assert remediation in check.remediation, check
    assert named(report, "plan").status is CheckStatus.FAILED


@pytest.mark.parametrize("form", ["truncated", "html", "text", "empty"])
async def test_an_answer_that_is_none_is_said_to_be_somebody_elses(azure: RunningSimulator, form: str) -> None:
    azure.set_faults({"match": "/", "fault": "malformed_json", "form": form})
    report = await diagnose(settings_for(azure.base_url))
    assert set(MINTS) <= set(failed(report))
    assert "something other than Azure" in named(report, "mint ga").remediation


async def test_a_hang_is_named_and_the_run_still_ends(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/", "fault": "hang"})
    began_s = time.monotonic()
    report = await diagnose(settings_for(azure.base_url), connect=True)
    assert time.monotonic() - began_s < 30
    assert {named(report, name).known_issue for name in MINTS + SOCKETS} == {KnownIssue.CONNECTION_HANG}


async def test_a_run_is_cut_off_at_its_limit_and_says_so(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/", "fault": "hang"})
    report = await diagnose(settings_for(azure.base_url), limit_s=0.5)
    assert named(report, "azure").finding.startswith("cut off after 0.5 s")
    assert not report.healthy


async def test_a_deployment_that_is_not_there_is_the_sops_404() -> None:
    async with serve(SimulatorConfig(deployments=frozenset({"other"}), voice_live_models=frozenset())) as azure:
        report = await diagnose(settings_for(azure.base_url))
    for name in MINTS + SOCKETS:
        check = named(report, name)
        assert (check.status, check.known_issue) == (CheckStatus.FAILED, KnownIssue.MODEL_NOT_FOUND)
        assert "deployment list" in check.remediation


async def test_another_key_than_the_resources_is_told() -> None:
    async with serve(SimulatorConfig(key=SecretStr("another"))) as azure:
        report = await diagnose(settings_for(azure.base_url))
    check = named(report, "key")
    assert (check.status, check.known_issue) == (CheckStatus.FAILED, KnownIssue.UNAUTHORIZED)
    assert "not API Management's" in check.remediation


async def test_a_route_that_the_resource_lacks_is_no_trouble_while_another_mints() -> None:
    async with serve(SimulatorConfig(kinds=frozenset({"unified"}))) as azure:
        report = await diagnose(settings_for(azure.base_url))
    assert report.healthy
    assert [named(report, name).status for name in MINTS] == [
        CheckStatus.NOTE,
        CheckStatus.NOTE,
        CheckStatus.NOTE,
        CheckStatus.OK,
    ]
    assert named(report, "plan").finding == "unified wins after 3 that fail"


async def test_nothing_that_mints_is_a_failure_unless_the_proxy_alone_is_meant(azure: RunningSimulator) -> None:
    azure.set_faults(
        {"match": "/openai", "method": "POST", "fault": "status", "code": 404},
        {"match": "/api", "fault": "status", "code": 404},
    )
    report = await diagnose(settings_for(azure.base_url))
    assert "BROKER_TOKEN_STRATEGIES=websocket_proxy" in named(report, "plan").remediation
    assert not report.healthy
    alone = await diagnose(settings_for(azure.base_url, token_strategies=("websocket_proxy",)))
    assert named(alone, "plan").status is CheckStatus.OK
    assert alone.healthy


async def test_a_refusal_behind_the_route_that_wins_is_a_warning(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/openai/realtime/client_secrets", "fault": "status", "code": 400})
    report = await diagnose(settings_for(azure.base_url))
    assert named(report, "mint unified").status is CheckStatus.WARNING
    assert report.healthy


async def test_trouble_on_one_route_fails_although_another_mints(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/openai/v1/realtime/client_secrets", "fault": "status", "code": 500})
    report = await diagnose(settings_for(azure.base_url))
    assert failed(report) == ["mint ga"]
    assert named(report, "plan").finding == "direct_deployment wins after 1 that fail"


async def test_a_transcription_deployment_that_is_missing_is_found_by_the_talk() -> None:
    async with serve(SimulatorConfig(transcription_deployments=frozenset())) as azure:
        report = await diagnose(settings_for(azure.base_url), connect=True)
    check = named(report, "transcription openai_realtime")
    assert check.status is CheckStatus.FAILED
    assert "AZURE_VOICELIVE_TRANSCRIPTION_MODEL" in check.remediation


async def test_each_upstream_is_told_with_what_it_transcribes_with(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url, transcription_model="gpt-4o-transcribe"), connect=True)
    assert named(report, "transcription openai_realtime").finding == "gpt-4o-transcribe transcribes"
    assert named(report, "transcription voice_live").finding == "whisper-1 transcribes"


async def test_a_talk_that_breaks_off_is_told(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/voice-live", "fault": "drop_after", "frames": 2})
    report = await diagnose(settings_for(azure.base_url), connect=True)
    assert named(report, "talk voice_live").status is CheckStatus.FAILED
    assert named(report, "talk openai_realtime").status is CheckStatus.OK


@pytest.mark.parametrize(
    ("offset_s", "status"),
    [(2, CheckStatus.OK), (90, CheckStatus.WARNING), (-90, CheckStatus.WARNING), (400, CheckStatus.FAILED)],
)
async def test_a_clock_that_is_off_is_measured(offset_s: float, status: CheckStatus) -> None:
    async with serve(SimulatorConfig(clock_offset_s=offset_s)) as azure:
        report = await diagnose(settings_for(azure.base_url))
    check = named(report, "clock")
    assert check.status is status
    assert abs(float(check.value.removesuffix(" s")) + offset_s) <= 2


# --- Entra


async def test_keys_switched_off_are_told_and_entra_is_tried() -> None:
    async with serve(SimulatorConfig(keys_disabled=True)) as azure:
        report = await diagnose(settings_for(azure.base_url), source=Tokens())
        without = await diagnose(settings_for(azure.base_url), source=Tokens(fails=True))
    assert report.healthy
    assert named(report, "key").status is CheckStatus.WARNING
    assert named(report, "mint ga").finding.startswith("mints with Entra")
    assert named(without, "key").status is CheckStatus.FAILED
    assert failed(without) == ["entra", "key"]


async def test_with_entra_alone_the_key_is_never_used(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url, azure_auth="entra"), source=Tokens())
    assert report.healthy
    assert named(report, "entra").status is CheckStatus.OK
    assert {seen.auth for seen in azure.requests} == {"entra"}


async def test_with_a_key_that_works_entra_is_not_asked(azure: RunningSimulator) -> None:
    tokens = Tokens()
    await diagnose(settings_for(azure.base_url), source=tokens)
    assert tokens.asked == 0


@pytest.mark.parametrize("source", [Tokens(fails=True), Tokens(hangs=True)], ids=["fails", "hangs"])
async def test_an_identity_that_gives_no_token_is_the_sops_hang(
    azure: RunningSimulator, source: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("token_broker.doctor.azure_checks.ENTRA_S", 0.3)
    report = await diagnose(settings_for(azure.base_url, key=None), source=source)
    check = named(report, "entra")
    assert (check.status, check.known_issue) == (CheckStatus.FAILED, KnownIssue.CONNECTION_HANG)
    assert "managed identity" in check.remediation


async def test_an_identity_without_the_role_is_told_which_one() -> None:
    roleless = SimulatorConfig(roleless_entra_tokens=frozenset({SecretStr("no-role")}))
    async with serve(roleless) as azure:
        report = await diagnose(settings_for(azure.base_url, key=None), source=Tokens(token="no-role"))
    check = named(report, "mint ga")
    assert check.known_issue is KnownIssue.UNAUTHORIZED
    assert "Cognitive Services OpenAI User" in check.remediation


# --- hosts


async def test_a_name_that_is_not_there_ends_it_early() -> None:
    report = await diagnose(settings_for("https://nobody.invalid"))
    assert failed(report) == ["dns nobody.invalid"]
    assert "spelling" in named(report, "dns nobody.invalid").remediation
    assert named(report, "azure").status is CheckStatus.NOTE


async def test_a_port_where_nobody_listens_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    report = await diagnose(settings_for(f"http://127.0.0.1:{port}"))
    assert failed(report) == [f"tcp 127.0.0.1:{port}"]


async def test_a_certificate_that_is_not_believed_is_told(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    async with serve(tls=TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")) as azure:
        report = await diagnose(settings_for(azure.base_url))
    check = named(report, "tls 127.0.0.1")
    assert check.status is CheckStatus.FAILED
    assert "certificate is not believed" in check.finding


async def test_plain_http_where_tls_was_expected_is_told(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url.replace("http:", "https:")))
    assert named(report, "tls 127.0.0.1").status is CheckStatus.FAILED


async def test_a_believed_certificate_is_shown_with_its_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    async with serve(tls=TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")) as azure:
        report = await diagnose(settings_for(azure.base_url))
    assert "TLSv1.3, the certificate is good for" in named(report, "tls 127.0.0.1").finding
    assert report.healthy


# --- configuration


async def test_no_endpoint_is_a_failure_with_what_to_set() -> None:
    report = await diagnose(settings_for(None))
    assert failed(report) == ["configuration"]
    assert "AZURE_VOICELIVE_ENDPOINT" in named(report, "configuration").remediation


async def test_an_odd_api_version_is_warned_of(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url, api_version="2031-01-01"))
    assert named(report, "api-version").status is CheckStatus.WARNING


async def test_agents_that_cannot_be_used_are_told(azure: RunningSimulator, tmp_path: Path) -> None:
    (tmp_path / "agents.toml").write_text("default = 'x'\n[agents.y]\nname = 'Y'\n")
    report = await diagnose(settings_for(azure.base_url, agents_file=tmp_path / "agents.toml"))
    assert "agents" in failed(report)


async def test_a_misspelt_variable_is_warned_of(azure: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_TOKEN_BUGDET_S", "3")
    report = await diagnose(settings_for(azure.base_url))
    (check,) = [check for check in report.checks if check.status is CheckStatus.WARNING]
    assert "BROKER_TOKEN_BUDGET_S is meant" in check.finding


@pytest.mark.parametrize("auth", ["key", "entra"])
@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "status", "code": 401, "body": {"error": {"code": "canary-key-5f1c", "message": "canary-key-5f1c"}}},
        {"fault": "redirect", "location": "https://canary-key-5f1c.invalid/"},
        {"fault": "missing_value"},
        None,
    ],
    ids=["401", "redirect", "missing value", "healthy"],
)
async def test_no_secret_is_in_any_check_or_log(
    azure: RunningSimulator, auth: str, fault: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    azure.set_faults(*([{"match": "/", **fault}] if fault else []))
    settings = settings_for(azure.base_url, key=SecretStr("canary-key-5f1c"), azure_auth=auth)
    source = Tokens(token="canary-entra-77ab", fails=fault is None)
    report = await diagnose(settings, source=source, connect=True)
    output = capsys.readouterr()
    shown = f"{report.as_json()} {report!r} {output.out} {output.err}"
    assert "canary" not in shown
    assert "ek_" not in shown
