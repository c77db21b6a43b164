"""Doctor against the simulator: healthy it is all green, and each trouble put into it is named with its mend."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from tests.doctor.support import Tokens, diagnose, failed, named, settings_for
from token_broker.doctor.checks import Mark, Trouble
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve
from token_broker.simulator.server import TlsFiles

MINTS = ["mint ga", "mint direct_deployment", "mint project", "mint unified"]
SOCKETS = ["socket voice_live", "socket openai_realtime"]


async def test_on_a_healthy_resource_every_mark_is_green(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url))
    assert {check.mark for check in report.checks} == {Mark.OK}
    names = [check.name for check in report.checks]
    assert [name for name in names if name.startswith(("mint", "socket"))] == MINTS + SOCKETS
    assert named(report, "plan").finding == "ga wins"
    assert named(report, "key").finding == "is this resource's"


async def test_a_silent_talk_is_held_on_each_upstream_and_the_transcription_tried(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url), connect=True)
    for upstream in ("voice_live", "openai_realtime"):
        assert named(report, f"talk {upstream}").mark is Mark.OK
        assert named(report, f"transcription {upstream}").mark is Mark.OK
    assert report.healthy


@pytest.mark.parametrize(
    ("taken", "turned_on", "mark", "word"),
    [
        (True, "off", Mark.OK, "BROKER_DIRECT_WEBSOCKET=on"),
        (True, "on", Mark.OK, ""),
        (False, "off", Mark.NOTE, ""),
        (False, "on", Mark.FAILED, "BROKER_DIRECT_WEBSOCKET=off"),
    ],
)
async def test_the_subprotocol_is_tried_and_decides_what_to_set(
    taken: bool, turned_on: str, mark: Mark, word: str
) -> None:
    async with serve(SimulatorConfig(ephemeral_subprotocol=taken)) as azure:
        report = await diagnose(settings_for(azure.base_url, direct_websocket=turned_on), connect=True)
    check = named(report, "direct websocket")
    assert check.mark is mark
    assert word in check.mend


@pytest.mark.parametrize(
    ("fault", "trouble", "mend"),
    [
        ({"fault": "status", "code": 401}, Trouble.UNAUTHORIZED, "az cognitiveservices account keys list"),
        ({"fault": "status", "code": 404}, Trouble.MODEL_NOT_FOUND, "East US 2, France Central, Sweden Central"),
        ({"fault": "status", "code": 400}, Trouble.BAD_REQUEST, "AZURE_VOICELIVE_ENDPOINT_KIND"),
        (
            {
                "fault": "status",
                "code": 400,
                "body": {"error": {"code": "400", "message": "API version not supported"}},
            },
            Trouble.BAD_REQUEST,
            "AZURE_VOICELIVE_API_VERSION",
        ),
        ({"fault": "status", "code": 500}, Trouble.SERVER_ERROR, "status page"),
        ({"fault": "status", "code": 503}, Trouble.SERVER_ERROR, "status page"),
        ({"fault": "status", "code": 429}, None, "quota"),
        ({"fault": "reset"}, None, "network"),
        ({"fault": "redirect", "location": "https://elsewhere.invalid/"}, None, "the resource's own host"),
    ],
    ids=["401", "404", "400", "api-version", "500", "503", "429", "reset", "redirect"],
)
async def test_each_trouble_is_named_as_the_sop_names_it_with_its_mend(
    azure: RunningSimulator, fault: dict[str, Any], trouble: Trouble | None, mend: str
) -> None:
    azure.set_faults({"match": "/", **fault})
    report = await diagnose(settings_for(azure.base_url))
    assert not report.healthy
    for name in MINTS + SOCKETS:
        check = named(report, name)
        assert (check.mark, check.trouble) == (Mark.FAILED, trouble), check
        assert mend in check.mend, check
    assert named(report, "plan").mark is Mark.FAILED


@pytest.mark.parametrize("form", ["truncated", "html", "text", "empty"])
async def test_an_answer_that_is_none_is_said_to_be_somebody_elses(azure: RunningSimulator, form: str) -> None:
    azure.set_faults({"match": "/", "fault": "malformed_json", "form": form})
    report = await diagnose(settings_for(azure.base_url))
    assert set(MINTS) <= set(failed(report))
    assert "something other than Azure" in named(report, "mint ga").mend


async def test_a_hang_is_named_and_the_run_still_ends(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/", "fault": "hang"})
    began_s = time.monotonic()
    report = await diagnose(settings_for(azure.base_url), connect=True)
    assert time.monotonic() - began_s < 30
    assert {named(report, name).trouble for name in MINTS + SOCKETS} == {Trouble.CONNECTION_HANG}


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
        assert (check.mark, check.trouble) == (Mark.FAILED, Trouble.MODEL_NOT_FOUND)
        assert "deployment list" in check.mend


async def test_another_key_than_the_resources_is_told() -> None:
    async with serve(SimulatorConfig(key=SecretStr("another"))) as azure:
        report = await diagnose(settings_for(azure.base_url))
    check = named(report, "key")
    assert (check.mark, check.trouble) == (Mark.FAILED, Trouble.UNAUTHORIZED)
    assert "not API Management's" in check.mend


async def test_a_route_that_the_resource_lacks_is_no_trouble_while_another_mints() -> None:
    async with serve(SimulatorConfig(kinds=frozenset({"unified"}))) as azure:
        report = await diagnose(settings_for(azure.base_url))
    assert report.healthy
    assert [named(report, name).mark for name in MINTS] == [Mark.NOTE, Mark.NOTE, Mark.NOTE, Mark.OK]
    assert named(report, "plan").finding == "unified wins after 3 that fail"


async def test_nothing_that_mints_is_a_failure_unless_the_proxy_alone_is_meant(azure: RunningSimulator) -> None:
    azure.set_faults(
        {"match": "/openai", "method": "POST", "fault": "status", "code": 404},
        {"match": "/api", "fault": "status", "code": 404},
    )
    report = await diagnose(settings_for(azure.base_url))
    assert "BROKER_TOKEN_STRATEGIES=websocket_proxy" in named(report, "plan").mend
    assert not report.healthy
    alone = await diagnose(settings_for(azure.base_url, token_strategies=("websocket_proxy",)))
    assert named(alone, "plan").mark is Mark.OK
    assert alone.healthy


async def test_a_refusal_behind_the_route_that_wins_is_a_warning(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/openai/realtime/client_secrets", "fault": "status", "code": 400})
    report = await diagnose(settings_for(azure.base_url))
    assert named(report, "mint unified").mark is Mark.WARNING
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
    assert check.mark is Mark.FAILED
    assert "AZURE_VOICELIVE_TRANSCRIPTION_MODEL" in check.mend


async def test_each_upstream_is_told_with_what_it_transcribes_with(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url, transcription_model="gpt-4o-transcribe"), connect=True)
    assert named(report, "transcription openai_realtime").finding == "gpt-4o-transcribe transcribes"
    assert named(report, "transcription voice_live").finding == "whisper-1 transcribes"


async def test_a_talk_that_breaks_off_is_told(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/voice-live", "fault": "drop_after", "frames": 2})
    report = await diagnose(settings_for(azure.base_url), connect=True)
    assert named(report, "talk voice_live").mark is Mark.FAILED
    assert named(report, "talk openai_realtime").mark is Mark.OK


@pytest.mark.parametrize(
    ("offset_s", "mark"), [(2, Mark.OK), (90, Mark.WARNING), (-90, Mark.WARNING), (400, Mark.FAILED)]
)
async def test_a_clock_that_is_off_is_measured(offset_s: float, mark: Mark) -> None:
    async with serve(SimulatorConfig(clock_offset_s=offset_s)) as azure:
        report = await diagnose(settings_for(azure.base_url))
    check = named(report, "clock")
    assert check.mark is mark
    assert abs(float(check.figure.removesuffix(" s")) + offset_s) <= 2


# --- Entra


async def test_keys_switched_off_are_told_and_entra_is_tried() -> None:
    async with serve(SimulatorConfig(keys_disabled=True)) as azure:
        report = await diagnose(settings_for(azure.base_url), source=Tokens())
        without = await diagnose(settings_for(azure.base_url), source=Tokens(fails=True))
    assert report.healthy
    assert named(report, "key").mark is Mark.WARNING
    assert named(report, "mint ga").finding.startswith("mints with Entra")
    assert named(without, "key").mark is Mark.FAILED
    assert failed(without) == ["entra", "key"]


async def test_with_entra_alone_the_key_is_never_used(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url, azure_auth="entra"), source=Tokens())
    assert report.healthy
    assert named(report, "entra").mark is Mark.OK
    assert {seen.auth for seen in azure.requests} == {"entra"}


async def test_with_a_key_that_works_entra_is_not_asked(azure: RunningSimulator) -> None:
    tokens = Tokens()
    await diagnose(settings_for(azure.base_url), source=tokens)
    assert tokens.asked == 0


@pytest.mark.parametrize("source", [Tokens(fails=True), Tokens(hangs=True)], ids=["fails", "hangs"])
async def test_an_identity_that_gives_no_token_is_the_sops_hang(
    azure: RunningSimulator, source: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("token_broker.doctor.azure.ENTRA_S", 0.3)
    report = await diagnose(settings_for(azure.base_url, key=None), source=source)
    check = named(report, "entra")
    assert (check.mark, check.trouble) == (Mark.FAILED, Trouble.CONNECTION_HANG)
    assert "managed identity" in check.mend


async def test_an_identity_without_the_role_is_told_which_one() -> None:
    roleless = SimulatorConfig(roleless_entra_tokens=frozenset({SecretStr("no-role")}))
    async with serve(roleless) as azure:
        report = await diagnose(settings_for(azure.base_url, key=None), source=Tokens(token="no-role"))
    check = named(report, "mint ga")
    assert check.trouble is Trouble.UNAUTHORIZED
    assert "Cognitive Services OpenAI User" in check.mend


# --- hosts


async def test_a_name_that_is_not_there_ends_it_early() -> None:
    report = await diagnose(settings_for("https://nobody.invalid"))
    assert failed(report) == ["dns nobody.invalid"]
    assert "spelling" in named(report, "dns nobody.invalid").mend
    assert named(report, "azure").mark is Mark.NOTE


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
    assert check.mark is Mark.FAILED
    assert "certificate is not believed" in check.finding


async def test_plain_http_where_tls_was_expected_is_told(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url.replace("http:", "https:")))
    assert named(report, "tls 127.0.0.1").mark is Mark.FAILED


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
    assert "AZURE_VOICELIVE_ENDPOINT" in named(report, "configuration").mend


async def test_an_odd_api_version_is_warned_of(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url, api_version="2031-01-01"))
    assert named(report, "api-version").mark is Mark.WARNING


async def test_agents_that_cannot_be_used_are_told(azure: RunningSimulator, tmp_path: Path) -> None:
    (tmp_path / "agents.toml").write_text("default = 'x'\n[agents.y]\nname = 'Y'\n")
    report = await diagnose(settings_for(azure.base_url, agents_file=tmp_path / "agents.toml"))
    assert "agents" in failed(report)


async def test_a_misspelt_variable_is_warned_of(azure: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_TOKEN_BUGDET_S", "3")
    report = await diagnose(settings_for(azure.base_url))
    (check,) = [check for check in report.checks if check.mark is Mark.WARNING]
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
