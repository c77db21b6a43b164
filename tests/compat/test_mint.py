"""`POST /v1/realtime/client_secrets` and its other paths: who gets a client secret, and what it says."""

import time
from pathlib import Path
from typing import Any

import pytest
from openai.types.realtime import ClientSecretCreateResponse
from pydantic import SecretStr

from tests.compat.conftest import OpenCompat
from tests.support.broker import make_settings, run_broker
from tests.support.client_secrets import secret_claims
from token_broker.security.tokens import Owner, TokenSigner

ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Are you still there?"}]}


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1", "/openai"])
async def test_secret_is_minted_under_each_path(compat_endpoints: OpenCompat, prefix: str) -> None:
    async with compat_endpoints() as compat:
        query = "?api-version=2025-10-01" if prefix == "/openai" else ""
        response = await compat.running.client.post(f"{prefix}/realtime/client_secrets{query}", json={})
        answer = ClientSecretCreateResponse.model_validate(response.json())
        assert answer.value.startswith("ek_")
        assert answer.session.type == "realtime"
        assert answer.session.model == "gpt-realtime"
        assert answer.session.instructions is None
        assert 590 <= answer.expires_at - time.time() <= 601
        assert response.headers["cache-control"] == "no-store"


async def test_empty_body_mints_the_agents_session(compat_endpoints: OpenCompat) -> None:
    async with compat_endpoints() as compat:
        assert (await compat.mint()).status_code == 200
        body = {
            "expires_after": {"anchor": "created_at", "seconds": 30},
            "session": {
                "type": "realtime",
                "model": "other",
                "instructions": "mine",
                "audio": {"output": {"voice": "x"}},
            },
            "metadata": {"agent_id": "marcus", "order": "4711"},
        }
        response = await compat.mint(body)
        assert response.status_code == 200
        assert 20 <= response.json()["expires_at"] - time.time() <= 31
        claims = secret_claims(compat.running.signer, response.json()["value"])
        assert claims.agent_id == "marcus"
        session = response.json()["session"]
        marcus = compat.running.agents.get("marcus")
        assert marcus is not None
        assert session["audio"]["output"] == {"format": {"type": "audio/pcm", "rate": 24000}}
        assert "mine" not in response.text
        assert marcus.instructions[:40] not in response.text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("{", 400, "invalid_json"),
        ({"session": {"type": "transcription"}}, 422, "invalid_request"),
        ({"expires_after": {"seconds": 5}}, 422, "invalid_request"),
        ({"expires_after": {"seconds": 7201}}, 422, "invalid_request"),
        ({"metadata": {"agent_id": "nobody"}}, 404, "unknown_agent"),
        ({"metadata": {"session_id": "short"}}, 422, "invalid_request"),
    ],
)
async def test_wrong_body_gets_problem_and_openai_error(
    compat_endpoints: OpenCompat, body: Any, status: int, code: str
) -> None:
    async with compat_endpoints() as compat:
        if isinstance(body, str):
            response = await compat.running.client.post("/v1/realtime/client_secrets", content=body)
        else:
            response = await compat.mint(body)
        document = response.json()
        assert (response.status_code, document["code"]) == (status, code)
        assert document["error"]["message"] == document["detail"]
        assert document["error"]["code"] == code


async def test_draining_replica_mints_no_more(compat_endpoints: OpenCompat) -> None:
    async with compat_endpoints() as compat:
        client, plan = compat.running.client, await compat.running.plan()
        own = {"Authorization": f"Bearer {plan['session_token']}"}
        async with compat.connect(secret=await compat.secret()) as caller:
            await caller.hear("session.created")
            compat.running.drain.begin()
            assert (await client.get("/readyz")).status_code == 503
            for path in ("/realtime/token", "/v1/realtime/client_secrets", "/v1/realtime/sessions", "/realtime/calls"):
                refused = await client.post(path, content=b"{}", headers=own)
                assert (refused.status_code, refused.json()["code"]) == (503, "draining"), path
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.headers["connection"] == "close"  # which leads to this replica, however often it asks
            said = {"session_id": plan["session_id"], "agent_id": "elena", "role": "user", "content": "goodbye"}
            assert (await client.post("/conversation/turn", json=said, headers=own)).status_code == 200
            await caller.send("conversation.item.create", item=ITEM)
            await caller.hear("conversation.item.done")
        status = (await client.get("/status")).json()
        assert status["slo"]["requests"] == status["slo"]["usable_plans"] == 1  # refusals are not held against it


async def test_resource_key_mints_nothing_and_is_logged(
    compat_endpoints: OpenCompat, capsys: pytest.CaptureFixture[str]
) -> None:
    async with compat_endpoints() as compat:
        for headers in ({"authorization": "Bearer simulated-key"}, {"api_key": "simulated-key"}):
            response = await compat.mint({}, **headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert "simulated-key" not in response.text
    assert capsys.readouterr().out.count("resource_key_presented") == 2


async def test_open_broker_ignores_placeholder_keys(
    compat_endpoints: OpenCompat,
) -> None:
    async with compat_endpoints() as compat:
        assert (await compat.mint({}, authorization="Bearer not-needed")).status_code == 200
        assert (await compat.mint({}, api_key="sk-anything")).status_code == 200


async def test_bad_secret_is_refused_though_optional(
    compat_endpoints: OpenCompat,
) -> None:
    async with compat_endpoints() as compat:
        secret = await compat.secret()
        forged = secret[:-4] + ("aaaa" if secret[-4:] != "aaaa" else "bbbb")
        other = TokenSigner([SecretStr("x" * 40)])
        foreign = other.client_secret(Owner("s" * 20, "anonymous", 1), agent_id="elena", ttl_s=60)
        for bad in (forged, foreign, foreign.removeprefix("ek_"), "ek_nonsense"):
            assert (await compat.mint({}, authorization=f"Bearer {bad}")).status_code == 401, bad


async def test_secret_mints_secret_that_ends_no_later(compat_endpoints: OpenCompat) -> None:
    async with compat_endpoints() as compat:
        first = (await compat.mint({"expires_after": {"seconds": 60}, "metadata": {"agent_id": "sage"}})).json()
        second = await compat.mint({"expires_after": {"seconds": 7200}}, authorization=f"Bearer {first['value']}")
        assert second.status_code == 200
        signer = compat.running.signer
        before, after = (secret_claims(signer, item["value"]) for item in (first, second.json()))
        assert after.owner.session_id == before.owner.session_id
        assert after.agent_id == "sage"
        assert after.expires_at_s <= before.expires_at_s
        other = await compat.mint({"metadata": {"session_id": "q" * 20}}, authorization=f"Bearer {first['value']}")
        assert (other.status_code, other.json()["code"]) == (403, "foreign_session")
        somebody = await compat.mint({"metadata": {"user_id": "else"}}, authorization=f"Bearer {first['value']}")
        assert (somebody.status_code, somebody.json()["code"]) == (403, "foreign_user")


async def test_leeway_does_not_extend_minting(compat_endpoints: OpenCompat) -> None:
    async with compat_endpoints() as compat:
        signer = compat.running.signer
        owner = Owner("s" * 20, "anonymous", 1)
        ended = signer.client_secret(owner, agent_id="elena", ttl_s=-30)
        async with compat.connect(secret=ended) as caller:
            await caller.hear("session.created")
        for credential in (ended, signer.session_token(owner, agent_id="elena", ttl_s=-30)):
            response = await compat.mint({}, authorization=f"Bearer {credential}")
            assert (response.status_code, response.json()["code"]) == (401, "credential_refused")


async def test_session_token_mints_for_its_session(compat_endpoints: OpenCompat) -> None:
    async with compat_endpoints() as compat:
        plan = await compat.running.plan({"agent_id": "marcus"})
        response = await compat.mint({}, authorization=f"Bearer {plan['session_token']}")
        claims = secret_claims(compat.running.signer, response.json()["value"])
        assert (claims.owner.session_id, claims.agent_id) == (plan["session_id"], "marcus")
        ticket = plan["connections"][-1]["protocols"][1].removeprefix("ticket.")
        assert (await compat.mint({}, authorization=f"Bearer {ticket}")).status_code == 401


async def test_two_differing_credentials_are_refused(
    compat_endpoints: OpenCompat,
) -> None:
    async with compat_endpoints() as compat:
        secret = await compat.secret()
        same = await compat.mint({}, authorization=f"Bearer {secret}", api_key=secret.removeprefix("ek_"))
        assert same.status_code == 200
        assert (await compat.mint({}, authorization=f"Bearer {secret}", api_key="another")).status_code == 401


async def test_a_mint_counts_as_a_token_request(compat_endpoints: OpenCompat) -> None:
    async with compat_endpoints(rate_limit_per_minute=2) as compat:
        assert [(await compat.mint({})).status_code for _ in range(3)] == [200, 200, 429]
        assert (await compat.mint({})).headers["retry-after"].isdecimal()


async def test_no_secret_without_an_azure_endpoint(tmp_path: Path) -> None:
    async with run_broker(make_settings(tmp_path, None, signing_keys="d" * 40)) as broker:
        response = await broker.client.post("/v1/realtime/client_secrets", json={})
        assert (response.status_code, response.json()["code"]) == (503, "not_configured")


async def test_secret_is_audited_without_its_value(
    compat_endpoints: OpenCompat, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async with compat_endpoints() as compat:
        secret = await compat.secret()
        metrics = (await compat.running.client.get("/metrics")).text
    logged = capsys.readouterr().out
    assert "credential_issued" in logged
    assert "client_secret" in logged
    assert secret not in logged
    assert secret.removeprefix("ek_") not in logged + metrics
