"""Compatible endpoints under `auth=entra`: the user's own token mints, wherever it is put, and nothing else does."""

from collections.abc import AsyncIterator

import pytest

from tests.compat.conftest import OpenCompats
from tests.security.fakes import AUDIENCE, TENANT, USER, Key, Tenant
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


async def test_the_users_own_token_mints_wherever_a_client_puts_its_key(
    compat_endpoints: OpenCompats, tenant: Tenant
) -> None:
    async with compat_endpoints(**signing_in(tenant)) as d:
        token = tenant.token()
        answers = [
            await d.mint({}, authorization=f"Bearer {token}"),
            await d.mint({}, api_key=token),
            await d.running.client.post(f"/v1/realtime/client_secrets?api-key={token}"),
        ]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            claims = d.running.broker.signer.read_client_secret(answer.json()["value"])
            assert claims.principal == f"entra:{TENANT}:{USER}"
        async with d.connect(secret=answers[0].json()["value"]) as caller:
            await caller.hear("session.created")


async def test_nobody_elses_mints_and_the_users_own_opens_no_socket(
    compat_endpoints: OpenCompats, tenant: Tenant
) -> None:
    async with compat_endpoints(**signing_in(tenant)) as d:
        assert (await d.mint({})).status_code == 401
        other = tenant.token(tid="99999999-2222-3333-4444-555555555555")
        wrong_issuer = tenant.token(iss="https://login.example/99999999-2222-3333-4444-555555555555/v2.0")
        forged = tenant.token(signed_by=Key.make("first"))
        expired = tenant.token(exp=1_700_000_000)
        for bad in (other, wrong_issuer, forged, expired, "simulated-key", "sk-anything"):
            assert (await d.mint({}, authorization=f"Bearer {bad}")).status_code == 401
            status, _, _ = await d.refusal(secret=bad)
            assert status == 401
        status, document, _ = await d.refusal(secret=tenant.token())
        assert (status, document["code"]) == (401, "credential_refused")


async def test_a_secret_is_its_principals_whose_limits_hold(compat_endpoints: OpenCompats, tenant: Tenant) -> None:
    async with compat_endpoints(**signing_in(tenant), max_sessions_per_principal=1) as d:
        mine, also_mine, anothers = [
            (await d.mint({}, authorization=f"Bearer {tenant.token(oid=who)}")).json()["value"]
            for who in (USER, USER, "bbbbbbbb-0000-0000-0000-00000000000b")
        ]
        async with d.connect(secret=mine) as caller:
            await caller.hear("session.created")
            assert (await d.refusal(secret=also_mine))[0] == 429
            async with d.connect(secret=anothers) as neighbour:
                await neighbour.hear("session.created")


async def test_a_principal_who_is_blocked_opens_nothing_with_any_secret(
    compat_endpoints: OpenCompats, tenant: Tenant
) -> None:
    async with compat_endpoints(**signing_in(tenant)) as d:
        bearer = {"authorization": f"Bearer {tenant.token()}"}
        secret = (await d.mint({}, **bearer)).json()["value"]
        d.running.broker.memory.blocklist._principals = frozenset({f"entra:{TENANT}:{USER}"})
        assert (await d.refusal(secret=secret))[0] == 403
        assert (await d.mint({}, **bearer)).status_code == 403
