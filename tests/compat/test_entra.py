"""Compatible endpoints under `auth=entra`: the user's own token mints, wherever it is put, and nothing else does."""

from collections.abc import AsyncIterator

import pytest

from tests.compat.conftest import OpenCompat
from tests.security.fakes import AUDIENCE, TENANT, USER, Key, Tenant
from tests.support.client_secrets import secret_claims
from tests.support.serving import serve_app


@pytest.fixture(scope="module")
def key() -> Key:
    return Key.make("first")


@pytest.fixture
async def tenant(key: Key) -> AsyncIterator[Tenant]:
    tenant = Tenant(key, keys=[key.jwk()])
    async with serve_app(tenant) as tenant.base_url:
        yield tenant


def signing_in(tenant: Tenant) -> dict[str, object]:
    return {
        "auth": "entra",
        "entra_tenant_id": TENANT,
        "entra_audience": AUDIENCE,
        "entra_authority": tenant.base_url,
    }


async def test_entra_token_mints_in_any_key_position(compat_endpoints: OpenCompat, tenant: Tenant) -> None:
    async with compat_endpoints(**signing_in(tenant)) as compat:
        token = tenant.token()
        answers = [
            await compat.mint({}, authorization=f"Bearer {token}"),
            await compat.mint({}, api_key=token),
            await compat.running.client.post(f"/v1/realtime/client_secrets?api-key={token}"),
        ]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            claims = secret_claims(compat.running.signer, answer.json()["value"])
            assert claims.owner.principal == f"entra:{TENANT}:{USER}"
        async with compat.connect(secret=answers[0].json()["value"]) as caller:
            await caller.hear("session.created")


async def test_foreign_tokens_do_not_mint_or_open_sockets(compat_endpoints: OpenCompat, tenant: Tenant) -> None:
    async with compat_endpoints(**signing_in(tenant)) as compat:
        assert (await compat.mint({})).status_code == 401
        other = tenant.token(tid="99999999-2222-3333-4444-555555555555")
        wrong_issuer = tenant.token(iss="https://login.example/99999999-2222-3333-4444-555555555555/v2.0")
        forged = tenant.token(signed_by=Key.make("first"))
        expired = tenant.token(exp=1_700_000_000)
        for bad in (other, wrong_issuer, forged, expired, "simulated-key", "sk-anything"):
            assert (await compat.mint({}, authorization=f"Bearer {bad}")).status_code == 401
            status, _, _ = await compat.refusal(secret=bad)
            assert status == 401
        status, document, _ = await compat.refusal(secret=tenant.token())
        assert (status, document["code"]) == (401, "credential_refused")


async def test_secret_counts_against_its_principal(compat_endpoints: OpenCompat, tenant: Tenant) -> None:
    async with compat_endpoints(**signing_in(tenant), max_sessions_per_principal=1) as compat:
        mine, also_mine, anothers = [
            (await compat.mint({}, authorization=f"Bearer {tenant.token(oid=who)}")).json()["value"]
            for who in (USER, USER, "bbbbbbbb-0000-0000-0000-00000000000b")
        ]
        async with compat.connect(secret=mine) as caller:
            await caller.hear("session.created")
            assert (await compat.refusal(secret=also_mine))[0] == 429
            async with compat.connect(secret=anothers) as neighbour:
                await neighbour.hear("session.created")


async def test_blocked_principals_secrets_open_nothing(compat_endpoints: OpenCompat, tenant: Tenant) -> None:
    async with compat_endpoints(**signing_in(tenant)) as compat:
        bearer = {"authorization": f"Bearer {tenant.token()}"}
        secret = (await compat.mint({}, **bearer)).json()["value"]
        compat.running.memory.blocklist._principals = frozenset({f"entra:{TENANT}:{USER}"})
        assert (await compat.refusal(secret=secret))[0] == 403
        assert (await compat.mint({}, **bearer)).status_code == 403
