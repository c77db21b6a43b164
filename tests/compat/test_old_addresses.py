"""Addresses of the time before GA, and Azure's for a deployment: served, or the answer names the new one."""

from pathlib import Path

import pytest
from openai.types.beta.realtime.session_create_response import SessionCreateResponse

from tests.compat.conftest import OpenCompat
from tests.compat.test_calls import calling_compat_endpoints, offer
from tests.simulator.phone import Phone
from tests.simulator.support import silence
from tests.support.client_secrets import secret_claims


async def test_earlier_mints_answer_in_their_shape(compat_endpoints: OpenCompat) -> None:
    async with compat_endpoints() as compat:
        for path in (
            "/v1/realtime/sessions",
            "/openai/v1/realtime/sessions",
            "/openai/realtimeapi/sessions?api-version=2025-04-01-preview",
            "/openai/deployments/gpt-realtime/realtime/sessions?api-version=2025-04-01-preview",
        ):
            body = {
                "model": "gpt-4o-realtime-preview",
                "voice": "alloy",
                "instructions": "mine",
                "client_secret": {"expires_after": {"anchor": "created_at", "seconds": 30}},
                "metadata": {"agent_id": "marcus"},
            }
            response = await compat.running.client.post(path, json=body)
            assert response.status_code == 200, response.text
            answer = SessionCreateResponse.model_validate(response.json())
            claims = secret_claims(compat.running.signer, answer.client_secret.value)
            assert (claims.agent_id, claims.owner.session_id) == ("marcus", response.json()["id"])
            assert 20 <= answer.client_secret.expires_at - claims.owner.epoch / 1000 <= 31
            assert (answer.input_audio_format, answer.modalities) == ("pcm16", ["audio", "text"])
            assert (answer.instructions, answer.voice) == (None, None)
            assert "mine" not in response.text
        refused = await compat.running.client.post("/v1/realtime/sessions", json={"metadata": {"agent_id": "nobody"}})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_agent")


async def test_deployments_paths_mint_and_talk(compat_endpoints: OpenCompat) -> None:
    async with compat_endpoints() as compat:
        minted = await compat.mint(prefix="/openai/deployments/gpt-realtime")
        assert minted.status_code == 200
        path = "/openai/deployments/gpt-realtime/realtime?api-version=2025-04-01-preview"
        async with compat.connect(path, secret=minted.json()["value"]) as caller:
            await caller.hear("session.created")


async def test_earlier_offers_become_calls(tmp_path: Path) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        secret, phone = await compat.secret(), Phone(silence(0.1))
        sdp = await phone.offer()
        for path in (
            "/v1/realtime?model=gpt-realtime",
            "/openai/v1/realtime?model=gpt-realtime",
            "/openai/realtime?api-version=2025-04-01-preview&deployment=gpt-realtime",
            "/v1/realtimertc?model=gpt-realtime",
            "/openai/deployments/gpt-realtime/realtime/calls",
        ):
            response = await offer(compat, sdp, secret, path=path)
            assert response.status_code == 201, response.text
            hang_up = f"{response.headers['location']}/hangup"
            ended = await compat.running.client.post(hang_up, headers={"api-key": secret})
            assert ended.status_code == 200, hang_up
        await phone.hang_up()
        unreadable = await compat.running.client.post("/v1/realtime", json={}, headers={"api-key": secret})
        assert (unreadable.status_code, unreadable.json()["code"]) == (415, "not_sdp")


@pytest.mark.parametrize("path", ["/v1/realtime/transcription_sessions", "/openai/realtime/session", "/realtime"])
async def test_unserved_path_names_the_served_ones(compat_endpoints: OpenCompat, path: str) -> None:
    async with compat_endpoints() as compat:
        missing = await compat.running.client.post(path, json={})
        status, document, headers = await compat.refusal(path)
        assert (missing.status_code, status) == (404, 404)
        assert headers["x-request-id"] == document["correlation_id"]
        for detail in (missing.json()["detail"], document["detail"]):
            assert all(f"/v1/realtime{rest}" in detail for rest in ("/client_secrets", " or", "/calls"))
        upgrade = await compat.running.client.get("/v1/realtime")
        assert upgrade.status_code == 426
        assert "POST /v1/realtime/calls" in upgrade.json()["detail"]
