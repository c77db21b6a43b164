"""Doctor against the simulator: a healthy one passes, and each fault is named with its remediation."""

import socket
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


async def test_healthy_resource_passes_every_check(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url))
    # A service that the resource lacks is worth knowing, and no fault.
    assert {check.status for check in report.checks if check.name != "gpt-live"} == {CheckStatus.OK}
    assert named(report, "voice live webrtc").finding == "the resource has it"
    names = [check.name for check in report.checks]
    assert [name for name in names if name.startswith(("mint", "socket"))] == MINTS + SOCKETS
    assert named(report, "plan").finding == "ga wins"
    assert named(report, "key").finding == "belongs to this resource"


async def test_webrtc_without_a_mint_is_a_plan(azure: RunningSimulator) -> None:
    """Each service that a resource may have is named; a disabled Foundry agent is a fault."""
    azure.set_faults({"match": "/openai", "fault": "status", "code": 404})
    report = await diagnose(settings_for(azure.base_url))
    assert named(report, "plan").finding.startswith("voice_live_webrtc")
    assert named(report, "gpt-live").status is not CheckStatus.FAILED
    azure.set_faults({"match": "/voice-live/realtime/calls", "fault": "no_voice_live_webrtc"})
    report = await diagnose(settings_for(azure.base_url))
    missing = named(report, "voice live webrtc")
    assert (missing.status, missing.finding) == (CheckStatus.NOTE, "not offered here (404)")


async def test_connect_holds_a_talk_on_each_upstream(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url), connect=True)
    for upstream in ("voice_live", "openai_realtime"):
        assert named(report, f"talk {upstream}").status is CheckStatus.OK
        assert named(report, f"transcription {upstream}").status is CheckStatus.OK
        taken = named(report, f"agents {upstream}")
        assert (taken.status, taken.finding) == (CheckStatus.OK, "Azure takes the sessions of elena, marcus, sage")
    assert report.healthy


async def test_connect_names_what_azure_refuses(tmp_path: Path) -> None:
    agents = tmp_path / "agents.toml"
    agents.write_text(
        """
        default = "a"
        [agents.a]
        name = "A"
        voices = { ga = "marin", preview = "alloy" }
        instructions = "Be A."
        [agents.b]
        name = "B"
        inherits = "a"
        voices = { ga = "robot", preview = "en-US-AvaNeural" }
        speed = 1.2
        """
    )
    async with serve() as azure:
        report = await diagnose(settings_for(azure.base_url, agents_file=agents), connect=True)
    told = [check for check in report.checks if check.name == "agents openai_realtime"]
    assert [(check.status, check.finding) for check in told] == [
        (CheckStatus.WARNING, "b: Azure refuses session.audio.output.voice, and talks go on without"),
        (CheckStatus.OK, "Azure takes the sessions of a"),
    ]
    assert named(report, "agents voice_live").status is CheckStatus.OK
    notes = [check.finding for check in report.checks if check.name == "agents"]
    assert "b: speed is left out, on Voice Live" in notes


@pytest.mark.parametrize(
    ("taken", "turned_on", "status", "word"),
    [
        (True, "off", CheckStatus.OK, "BROKER_DIRECT_WEBSOCKET=on"),
        (True, "on", CheckStatus.OK, ""),
        (False, "off", CheckStatus.NOTE, ""),
        (False, "on", CheckStatus.FAILED, "BROKER_DIRECT_WEBSOCKET=off"),
    ],
)
async def test_subprotocol_result_says_what_to_set(taken: bool, turned_on: str, status: CheckStatus, word: str) -> None:
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
async def test_fault_names_its_issue_and_remediation(
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
async def test_malformed_answer_is_not_azures(azure: RunningSimulator, form: str) -> None:
    azure.set_faults({"match": "/", "fault": "malformed_json", "form": form})
    report = await diagnose(settings_for(azure.base_url))
    assert set(MINTS) <= set(failed(report))
    assert "something other than Azure" in named(report, "mint ga").remediation


async def test_hang_is_named_and_the_run_ends(azure: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.doctor.azure_checks.PROBE_S", 0.5)
    azure.set_faults({"match": "/", "fault": "hang"})
    report = await diagnose(settings_for(azure.base_url), connect=True)
    assert {named(report, name).known_issue for name in MINTS + SOCKETS} == {KnownIssue.CONNECTION_HANG}
    assert "azure" not in failed(report), "each probe ends by itself, before the limit for the whole run"


async def test_run_is_cut_off_at_its_limit(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/", "fault": "hang"})
    report = await diagnose(settings_for(azure.base_url), limit_s=0.5)
    assert named(report, "azure").finding.startswith("cut off after 0.5 s")
    assert not report.healthy


async def test_missing_deployment_is_model_not_found() -> None:
    async with serve(SimulatorConfig(deployments=frozenset({"other"}), voice_live_models=frozenset())) as azure:
        report = await diagnose(settings_for(azure.base_url))
    for name in MINTS + SOCKETS:
        check = named(report, name)
        assert (check.status, check.known_issue) == (CheckStatus.FAILED, KnownIssue.MODEL_NOT_FOUND)
        assert "deployment list" in check.remediation


async def test_wrong_key_is_unauthorized() -> None:
    async with serve(SimulatorConfig(key=SecretStr("another"))) as azure:
        report = await diagnose(settings_for(azure.base_url))
    check = named(report, "key")
    assert (check.status, check.known_issue) == (CheckStatus.FAILED, KnownIssue.UNAUTHORIZED)
    assert "not API Management's" in check.remediation


async def test_missing_route_is_a_note_if_another_mints() -> None:
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


async def test_no_mint_fails_unless_proxy_alone_is_set(azure: RunningSimulator) -> None:
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


async def test_refusal_after_the_winner_is_a_warning(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/openai/realtime/client_secrets", "fault": "status", "code": 400})
    report = await diagnose(settings_for(azure.base_url))
    assert named(report, "mint unified").status is CheckStatus.WARNING
    assert report.healthy


async def test_fault_before_the_winner_fails(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/openai/v1/realtime/client_secrets", "fault": "status", "code": 500})
    report = await diagnose(settings_for(azure.base_url))
    assert failed(report) == ["mint ga"]
    assert named(report, "plan").finding == "direct_deployment wins after 1 that fail"


async def test_talk_finds_missing_transcription_model() -> None:
    async with serve(SimulatorConfig(transcription_deployments=frozenset())) as azure:
        report = await diagnose(settings_for(azure.base_url), connect=True)
    check = named(report, "transcription openai_realtime")
    assert check.status is CheckStatus.FAILED
    assert "AZURE_VOICELIVE_TRANSCRIPTION_MODEL" in check.remediation


async def test_talk_names_each_transcription_model(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url, transcription_model="gpt-4o-transcribe"), connect=True)
    assert named(report, "transcription openai_realtime").finding == "gpt-4o-transcribe transcribes"
    assert named(report, "transcription voice_live").finding == "whisper-1 transcribes"


async def test_talk_that_breaks_off_fails(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/voice-live", "fault": "drop_after", "frames": 2})
    report = await diagnose(settings_for(azure.base_url), connect=True)
    assert named(report, "talk voice_live").status is CheckStatus.FAILED
    assert named(report, "talk openai_realtime").status is CheckStatus.OK


@pytest.mark.parametrize(
    ("offset_s", "status"),
    [(2, CheckStatus.OK), (90, CheckStatus.WARNING), (-90, CheckStatus.WARNING), (400, CheckStatus.FAILED)],
)
async def test_clock_skew_is_measured(offset_s: float, status: CheckStatus) -> None:
    async with serve(SimulatorConfig(clock_offset_s=offset_s)) as azure:
        report = await diagnose(settings_for(azure.base_url))
    check = named(report, "clock")
    assert check.status is status
    assert abs(float(check.value.removesuffix(" s")) + offset_s) <= 2


# --- Entra


async def test_disabled_keys_make_doctor_try_entra() -> None:
    async with serve(SimulatorConfig(keys_disabled=True)) as azure:
        report = await diagnose(settings_for(azure.base_url), source=Tokens())
        without = await diagnose(settings_for(azure.base_url), source=Tokens(fails=True))
    assert report.healthy
    assert named(report, "key").status is CheckStatus.WARNING
    assert named(report, "mint ga").finding.startswith("mints with Entra")
    assert named(without, "key").status is CheckStatus.FAILED
    assert failed(without) == ["entra", "key"]


async def test_entra_alone_never_uses_the_key(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url, azure_auth="entra"), source=Tokens())
    assert report.healthy
    assert named(report, "entra").status is CheckStatus.OK
    assert {seen.auth for seen in azure.requests} == {"entra"}


async def test_working_key_leaves_entra_unasked(azure: RunningSimulator) -> None:
    tokens = Tokens()
    await diagnose(settings_for(azure.base_url), source=tokens)
    assert tokens.asked == 0


@pytest.mark.parametrize("source", [Tokens(fails=True), Tokens(hangs=True)], ids=["fails", "hangs"])
async def test_identity_without_token_is_a_hang(
    azure: RunningSimulator, source: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("token_broker.doctor.azure_checks.ENTRA_S", 0.3)
    report = await diagnose(settings_for(azure.base_url, key=None), source=source)
    check = named(report, "entra")
    assert (check.status, check.known_issue) == (CheckStatus.FAILED, KnownIssue.CONNECTION_HANG)
    assert "managed identity" in check.remediation


async def test_identity_without_role_is_told_which() -> None:
    roleless = SimulatorConfig(roleless_entra_tokens=frozenset({SecretStr("no-role")}))
    async with serve(roleless) as azure:
        report = await diagnose(settings_for(azure.base_url, key=None), source=Tokens(token="no-role"))
    check = named(report, "mint ga")
    assert check.known_issue is KnownIssue.UNAUTHORIZED
    assert "Cognitive Services OpenAI User" in check.remediation


# --- hosts


async def test_unknown_host_ends_the_run_early() -> None:
    report = await diagnose(settings_for("https://nobody.invalid"))
    assert failed(report) == ["dns nobody.invalid"]
    assert "spelling" in named(report, "dns nobody.invalid").remediation
    assert named(report, "azure").status is CheckStatus.NOTE


async def test_closed_port_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    report = await diagnose(settings_for(f"http://127.0.0.1:{port}"))
    assert failed(report) == [f"tcp 127.0.0.1:{port}"]


async def test_untrusted_certificate_fails(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    async with serve(tls=TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")) as azure:
        report = await diagnose(settings_for(azure.base_url))
    check = named(report, "tls 127.0.0.1")
    assert check.status is CheckStatus.FAILED
    assert "certificate is not trusted" in check.finding


async def test_plain_http_on_a_tls_port_fails(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url.replace("http:", "https:")))
    assert named(report, "tls 127.0.0.1").status is CheckStatus.FAILED


async def test_trusted_certificate_shows_its_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    async with serve(tls=TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")) as azure:
        report = await diagnose(settings_for(azure.base_url))
    assert "TLSv1.3, the certificate is valid for" in named(report, "tls 127.0.0.1").finding
    assert report.healthy


# --- configuration


async def test_missing_endpoint_fails() -> None:
    report = await diagnose(settings_for(None))
    assert failed(report) == ["configuration"]
    assert "AZURE_VOICELIVE_ENDPOINT" in named(report, "configuration").remediation


async def test_unknown_api_version_is_a_warning(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url, api_version="2031-01-01"))
    assert named(report, "api-version").status is CheckStatus.WARNING


async def test_unusable_agents_file_fails(azure: RunningSimulator, tmp_path: Path) -> None:
    (tmp_path / "agents.toml").write_text("default = 'x'\n[agents.y]\nname = 'Y'\n")
    report = await diagnose(settings_for(azure.base_url, agents_file=tmp_path / "agents.toml"))
    assert "agents" in failed(report)


async def test_misspelt_variable_is_a_warning(azure: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_TOKEN_BUGDET_S", "3")
    report = await diagnose(settings_for(azure.base_url))
    (check,) = [check for check in report.checks if check.status is CheckStatus.WARNING]
    assert "BROKER_TOKEN_BUDGET_S" in check.finding


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
