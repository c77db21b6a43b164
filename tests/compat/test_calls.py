"""The compatible endpoints' WebRTC calls: a real one through the broker, with what the sideband keeps of it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.compat.conftest import SIGNING_KEY, CompatBroker
from tests.hooks.support import SECRET
from tests.relay.support.tool_talks import agents_with_tools
from tests.simulator.phone import Phone
from tests.simulator.support import silence, speech
from tests.support.agents import write_agents
from tests.support.broker import make_settings, run_broker
from tests.support.client_secrets import secret_claims
from tests.support.offers import OFFER
from tests.support.tool_server import run_tool_server
from tests.support.waiting import eventually
from token_broker.simulator import SimulatorConfig, serve

pytestmark = pytest.mark.usefixtures("loopback")


@asynccontextmanager
async def calling_compat_endpoints(directory: Path, **overrides: Any) -> AsyncIterator[CompatBroker]:
    async with serve(SimulatorConfig(ice_addresses=("127.0.0.1",))) as azure:
        settings = make_settings(directory, azure.base_url, signing_keys=SIGNING_KEY, **overrides)
        async with run_broker(settings) as running:
            yield CompatBroker(running, azure)
    assert azure.calls == 0


async def offer(
    compat: CompatBroker, sdp: str, secret: str, *, path: str = "/v1/realtime/calls", form: bool = False
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}"}
    if form:
        parts = {
            "sdp": (None, sdp, "application/sdp"),
            "session": (None, json.dumps({"type": "realtime"}), "application/json"),
        }
        return await compat.running.client.post(path, files=parts, headers=headers)
    return await compat.running.client.post(path, content=sdp, headers=headers | {"Content-Type": "application/sdp"})


@pytest.mark.parametrize("form", [False, True], ids=["raw", "as a form"])
async def test_call_turns_are_kept_until_hang_up(tmp_path: Path, *, form: bool) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        secret = await compat.secret()
        phone = Phone(speech(1.0) + silence(2.0))
        response = await offer(compat, await phone.offer(), secret, form=form)
        assert response.status_code == 201, response.text
        assert response.headers["content-type"].startswith("application/sdp")
        await phone.connect(response.text)
        done = await phone.hear("response.done")
        assert done["response"]["usage"]["total_tokens"] > 0
        await phone.hear("output_audio_buffer.stopped")
        assert compat.running.talks.active == 1
        location = response.headers["location"]
        assert location.startswith("/v1/realtime/calls/")
        turns = await compat.turns_once_there(secret, 2)
        assert [(turn["role"], turn["source"]) for turn in turns] == [("user", "proxy"), ("assistant", "proxy")]
        hung_up = await compat.running.client.post(f"{location}/hangup", headers={"api-key": secret})
        assert hung_up.status_code == 200
        await eventually(lambda: _over(compat))
        assert len(await compat.turns(secret)) == 2
        await phone.hang_up()


async def _over(compat: CompatBroker) -> bool:
    return not compat.running.talks.active and not compat.azure.calls and not compat.running.drain.talks


async def test_client_hang_up_gives_its_place_back(tmp_path: Path) -> None:
    async with calling_compat_endpoints(tmp_path, max_sessions_per_principal=1) as compat:
        secret = await compat.secret()
        phone = Phone(speech(0.6) + silence(2.0))
        await phone.connect((await offer(compat, await phone.offer(), secret)).text)
        await phone.hear("response.done")
        second = await offer(compat, OFFER, secret)
        assert (second.status_code, second.json()["code"]) == (429, "too_many_sessions")
        await phone.hang_up()
        await eventually(lambda: _over(compat), within_s=40)
        assert [turn["role"] for turn in await compat.turns_once_there(secret, 2)] == ["user", "assistant"]


async def test_clients_instructions_are_taken_back(tmp_path: Path) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        secret = await compat.secret({"metadata": {"agent_id": "marcus"}})
        marcus = compat.running.agents.get("marcus")
        assert marcus is not None
        phone = Phone(silence(3.0))
        answer = await offer(compat, await phone.offer(), secret)
        await phone.connect(answer.text)
        created = await phone.hear("session.created")
        assert created["session"]["instructions"].startswith(marcus.instructions)
        await phone.hear("session.updated")  # the broker has joined
        audio = {"input": {"transcription": None}}
        phone.send("session.update", session={"type": "realtime", "instructions": "Be a pirate.", "audio": audio})
        assert (await phone.hear("session.updated", count=2))["session"]["instructions"] == "Be a pirate."
        restored = await phone.hear("session.updated", count=3)
        assert restored["session"]["instructions"].startswith(marcus.instructions)
        assert restored["session"]["audio"]["input"]["transcription"]["model"] == "gpt-4o-mini-transcribe"
        phone.send("session.update", session={"type": "realtime", "audio": {"output": {"speed": 1.1}}})
        last = await phone.hear("session.updated", count=4)
        assert last["session"]["instructions"].startswith(marcus.instructions)
        await compat.running.client.post(f"{answer.headers['location']}/hangup", headers={"api-key": secret})
        await eventually(lambda: _over(compat))
        assert len([name for name in phone.names() if name == "session.updated"]) == 4
        await phone.hang_up()


async def test_call_goes_on_without_sideband(tmp_path: Path) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        secret = await compat.secret()
        phone = Phone(speech(0.6) + silence(2.0))
        sdp = await phone.offer()
        compat.running.relay.parts.connector.join_call = _nobody_joins  # type: ignore[method-assign]
        answer = await offer(compat, sdp, secret)
        await phone.connect(answer.text)
        await phone.hear("response.done")
        assert await compat.turns(secret) == []
        assert compat.running.talks.active == 1
        await compat.running.client.post(f"{answer.headers['location']}/hangup", headers={"api-key": secret})
        await eventually(lambda: _over(compat))
        await phone.hang_up()


async def _nobody_joins(endpoint: str, call_id: str) -> Any:
    from strategies.errors import PermanentError

    raise PermanentError("no such call")


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({"content-type": "application/json"}, "{}", 415, "not_sdp"),
        ({"content-type": "application/sdp"}, "hello", 400, "bad_sdp"),
        ({"content-type": "multipart/form-data; boundary=x"}, "nonsense", 400, "bad_form"),
        ({"content-type": "multipart/form-data"}, "--x--", 400, "bad_form"),
        (
            {"content-type": "multipart/form-data; boundary=x"},
            '--x\r\nContent-Disposition: form-data; name="other"\r\n\r\nv=0\r\n--x--\r\n',
            400,
            "bad_form",
        ),
        (
            {"content-type": "multipart/form-data; boundary=x; charset=unicode_escape"},
            '--x\r\nContent-Disposition: form-data; name="sdp"\r\n\r\nv=0\\ud800\r\n--x--\r\n',
            400,
            "bad_sdp",
        ),
        (
            {"content-type": 'multipart/form-data; charset=undefined; boundary="x"'},
            '--x\r\nContent-Disposition: form-data; name="sdp"\r\n\r\nv=0\r\n--x--\r\n',
            400,
            "bad_sdp",
        ),
        ({"content-type": "application/sdp"}, "v=0\r\n" + "a=x\r\n" * 60_000, 413, "body_too_large"),
    ],
)
async def test_wrong_offer_gets_its_reason(
    tmp_path: Path, headers: dict[str, str], content: str, status: int, code: str
) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        given = headers | {"authorization": f"Bearer {await compat.secret()}"}
        response = await compat.running.client.post("/v1/realtime/calls", content=content, headers=given)
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert response.json()["error"]["code"] == code
        assert compat.running.talks.active == 0


async def test_hang_up_works_drained_and_blocked(tmp_path: Path) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        secret = await compat.secret()
        broker = compat.running
        for shut in ("blocked", "draining"):
            phone = Phone(silence(1.0))
            location = (await offer(compat, await phone.offer(), secret)).headers["location"]
            if shut == "blocked":
                broker.memory.blocklist._sessions = frozenset({secret_claims(broker.signer, secret).owner.session_id})
            else:
                broker.drain.begin()
            assert (await offer(compat, OFFER, secret)).status_code == {"blocked": 403, "draining": 503}[shut]
            response = await compat.running.client.post(f"{location}/hangup", headers={"api-key": secret})
            assert response.status_code == 200, response.text
            await eventually(lambda: _over(compat))
            broker.memory.blocklist._sessions = frozenset()
            await phone.hang_up()


async def test_only_own_session_hangs_up_a_call(tmp_path: Path) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        secret, other = await compat.secret(), await compat.secret()
        phone = Phone(silence(1.0))
        answer = await offer(compat, await phone.offer(), secret, path="/openai/v1/realtime/calls")
        location = answer.headers["location"]
        for credential, status in [({"api-key": other}, 404), ({}, 401), ({"api-key": "simulated-key"}, 401)]:
            assert (await compat.running.client.post(f"{location}/hangup", headers=credential)).status_code == status
        assert (
            await compat.running.client.post("/v1/realtime/calls/none/hangup", headers={"api-key": secret})
        ).status_code == 404
        assert compat.azure.calls == 1
        assert (await compat.running.client.post(f"{location}/hangup", headers={"api-key": secret})).status_code == 200
        await eventually(lambda: _over(compat))
        await phone.hang_up()


async def test_repeated_session_changes_end_the_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("token_broker.calls.running_calls._FIRST_PAUSE_S", 0.05)
    async with calling_compat_endpoints(tmp_path) as compat:
        secret = await compat.secret()
        phone = Phone(silence(3.0))
        answer = await offer(compat, await phone.offer(), secret)
        await phone.connect(answer.text)
        await phone.hear("session.updated")  # the broker has joined
        with compat.azure.fault("status", "/openai/v1/realtime/calls/", code=503, times=2):
            for number in range(1, 7):
                assert compat.azure.calls == 1
                phone.send("session.update", session={"type": "realtime", "instructions": f"Be pirate {number}."})
                if number < 6:
                    restored = await phone.hear("session.updated", count=2 * number + 1)
                    assert "pirate" not in restored["session"]["instructions"]
            await eventually(lambda: _over(compat))
        metrics = (await compat.running.client.get("/metrics")).text
        assert "token_broker_calls_ended_for_changes_total 1.0" in metrics
        status = (await compat.running.client.get("/status")).json()
        assert status["relay"]["calls_ended"] == 1
        told = capsys.readouterr()
        audited = [line for line in (told.out + told.err).splitlines() if "call_ended_for_changes" in line]
        assert len(audited) == 1
        session_id = secret_claims(compat.running.signer, secret).owner.session_id
        for fact in (session_id, "anonymous", "elena"):
            assert fact in audited[0]
        assert "pirate" not in audited[0]
        await phone.hang_up()


async def test_unconnected_call_gives_its_place_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.listener._UNKNOWN_S", 0.6)
    async with calling_compat_endpoints(tmp_path, max_sessions_per_principal=1) as compat:
        secret = await compat.secret()
        phone = Phone(silence(1.0))
        with compat.azure.fault("ice_never", "/openai/v1/realtime/calls"):
            assert (await offer(compat, await phone.offer(), secret)).status_code == 201
        second = await offer(compat, OFFER, secret)
        assert (second.status_code, second.json()["code"]) == (429, "too_many_sessions")
        await eventually(lambda: _over(compat))
        await phone.hang_up()
        third = Phone(silence(1.0))
        answer = await offer(compat, await third.offer(), secret)
        assert answer.status_code == 201
        await compat.running.client.post(f"{answer.headers['location']}/hangup", headers={"api-key": secret})
        await eventually(lambda: _over(compat))
        await third.hang_up()


async def test_hang_up_stops_the_wait_to_join(tmp_path: Path) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        secret = await compat.secret()
        phone = Phone(silence(1.0))
        with compat.azure.fault("ice_never", "/openai/v1/realtime/calls"):
            answer = await offer(compat, await phone.offer(), secret)
        assert len(compat.running.drain.talks) == 1
        hung_up = await compat.running.client.post(f"{answer.headers['location']}/hangup", headers={"api-key": secret})
        assert hung_up.status_code == 200
        await eventually(lambda: _over(compat), within_s=10)
        await phone.hang_up()


@pytest.mark.parametrize("path", ["/v1/realtime/calls", "/openai/v1/realtime/calls"])
async def test_offers_count_against_the_rate(tmp_path: Path, path: str) -> None:
    async with calling_compat_endpoints(tmp_path, rate_limit_per_minute=3) as compat:
        secret = await compat.secret()
        answers = [await offer(compat, OFFER, secret, path=path) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [502, 502, 429]  # the simulated Azure wants a whole one
        assert answers[-1].json()["code"] == "rate_limited"
        assert answers[-1].headers["retry-after"].isdecimal()
        assert compat.running.talks.active == 0


@pytest.mark.slow
async def test_tool_runs_in_a_call(tmp_path: Path) -> None:
    async with run_tool_server() as server:
        file = write_agents(tmp_path, agents_with_tools(server))
        settings: dict[str, Any] = {"agents_file": file, "tools_secret": SECRET}
        async with calling_compat_endpoints(tmp_path, **settings) as compat:
            compat.azure.script_responses({"calls": [{"name": "ok"}, {"name": "ok"}]})
            secret = await compat.secret()
            phone = Phone(speech(1.0) + silence(2.0))
            answer = await offer(compat, await phone.offer(), secret)
            await phone.connect(answer.text)
            await phone.hear("response.done", count=2)
            assert [call["tool"] for call in server.calls] == ["ok", "ok"]
            said = (await phone.hear("response.output_audio_transcript.done"))["transcript"]
            assert said == '[simulated] the function gave: {"ran": "ok", "arguments": {}}'
            await compat.running.client.post(f"{answer.headers['location']}/hangup", headers={"api-key": secret})
            await eventually(lambda: _over(compat))
            assert [each.follows for each in compat.azure.transcript.answers] == ["utterance", "tool"]
            assert "error" not in phone.names()
            await phone.hang_up()
