"""Entra's tokens against a tenant on a real socket: what is believed, how its keys are kept, and no forgery."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jwt.warnings import InsecureKeyLengthWarning
from pydantic import ValidationError

from tests.security.fakes import AUDIENCE, TENANT, USER, Key, Tenant
from tests.strategies.clock import Clock
from tests.support.machine import retry_if_host_busy
from token_broker.security.authentication import Authenticator, make_authenticator
from token_broker.security.entra_jwt import (
    EntraIdentity,
    EntraTokenVerifier,
    JwksCache,
    JwksUnavailableError,
    TokenRefusedError,
)
from token_broker.settings import Settings, SettingsError
from token_broker.web.requests import Problem

OTHER_TENANT = "99999999-2222-3333-4444-555555555555"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jwks(tenant: Tenant, http: httpx.AsyncClient, clock: Clock) -> JwksCache:
    return JwksCache(http, f"{tenant.base_url}/{TENANT}/discovery/v2.0/keys", clock=clock)


@pytest.fixture
def verifier(tenant: Tenant, jwks: JwksCache) -> EntraTokenVerifier:
    return EntraTokenVerifier(jwks, authority=tenant.base_url, tenant_id=TENANT.upper(), audiences=[AUDIENCE])


def authenticator(tenant: Tenant, http: httpx.AsyncClient, **values: Any) -> Authenticator:
    settings = Settings(
        _env_file=None,
        auth="entra",
        entra_tenant_id=TENANT,
        entra_authority=tenant.base_url,
        **{"entra_audience": AUDIENCE, **values},
    )
    return make_authenticator(settings, http)


def scope(*authorization: str) -> dict[str, Any]:
    return {"type": "http", "headers": [(b"authorization", value.encode("latin-1")) for value in authorization]}


# --- who is believed


async def test_tenant_token_yields_principal(tenant: Tenant, http: httpx.AsyncClient) -> None:
    asked = authenticator(tenant, http)
    principal = await asked.authenticate(scope(f"bearer  {tenant.token()}"))
    assert principal.id == principal.limit_key == f"entra:{TENANT}:{USER}"
    assert (principal.subject, principal.authenticated) == (USER, True)
    await asked.aclose()


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": f"https://sts.windows.net/{TENANT}/", "ver": "1.0"},
        {"aud": ["api://other", AUDIENCE]},
        {"tid": TENANT.upper(), "oid": USER.upper()},
        {"sub": None},
    ],
)
async def test_v1_and_v2_issuers_are_accepted(
    tenant: Tenant, verifier: EntraTokenVerifier, claims: dict[str, Any]
) -> None:
    assert await verifier.verify(tenant.token(**claims)) == EntraIdentity(TENANT, USER, frozenset())


APPLICATION = "0cfd7d1e-8c3f-4b6a-9d55-2f8f1c0b7a11"


@pytest.mark.parametrize(
    ("configured", "came"),
    [
        (APPLICATION, f"api://{APPLICATION}"),
        (f"api://{APPLICATION}", APPLICATION),
        (f"api://{APPLICATION.upper()}/", [APPLICATION]),
        (f"api://voice, {APPLICATION}", f"api://{APPLICATION}"),
        (f"api://voice,api://{APPLICATION}", "api://voice"),
    ],
)
async def test_both_forms_of_an_audience_are_taken(
    tenant: Tenant, http: httpx.AsyncClient, configured: str, came: object
) -> None:
    asked = authenticator(tenant, http, entra_audience=configured)
    assert (await asked.authenticate(scope(f"Bearer {tenant.token(aud=came)}"))).authenticated


@pytest.mark.parametrize("came", ["api://other", OTHER_TENANT, ["api://other", 7], f"api://{APPLICATION}/read", {}])
async def test_log_names_the_audience_that_came(tenant: Tenant, http: httpx.AsyncClient, came: object) -> None:
    asked = authenticator(tenant, http, entra_audience=f"api://voice,{APPLICATION}")
    with structlog.testing.capture_logs() as logged, pytest.raises(Problem, match="another audience"):
        await asked.authenticate(scope(f"Bearer {tenant.token(aud=came)}"))
    (line,) = logged
    assert (line["event"], line["audience"]) == ("token_for_another_audience", str(came))
    assert line["accepted"] == ["api://voice", APPLICATION, f"api://{APPLICATION}"]
    with structlog.testing.capture_logs() as logged, pytest.raises(Problem):
        await asked.authenticate(scope(f"Bearer {tenant.token(aud=came, signed_by=Key.make('first'))}"))
    assert logged == []  # a stranger writes nothing into the log


@pytest.mark.parametrize(
    "issuer",
    [f"https://login.partner.microsoftonline.cn/{TENANT}/v2.0", f"https://sts.chinacloudapi.cn/{TENANT}/"],
)
async def test_issuers_in_china_are_accepted(issuer: str, tenant: Tenant, jwks: JwksCache) -> None:
    authority = "https://login.partner.microsoftonline.cn"
    verifier = EntraTokenVerifier(jwks, authority=authority, tenant_id=TENANT, audiences=[AUDIENCE])
    assert (await verifier.verify(tenant.token(iss=issuer))).tenant_id == TENANT
    with pytest.raises(TokenRefusedError, match="another issuer"):
        await verifier.verify(tenant.token(iss=f"https://login.microsoftonline.com/{TENANT}/v2.0"))


@pytest.mark.parametrize(("name", "offset_s"), [("exp", -30), ("nbf", 30)])
async def test_clocks_may_differ_by_a_minute(
    tenant: Tenant, verifier: EntraTokenVerifier, name: str, offset_s: int
) -> None:
    claims: dict[str, Any] = {name: int(time.time()) + offset_s}
    await verifier.verify(tenant.token(**claims))


Forge = Callable[[Tenant, Key], str]


def unsigned(tenant: Tenant, _other: Key) -> str:
    return jwt.encode(tenant.claims(), "", algorithm="none", headers={"kid": tenant.key.kid})


def public_pem(key: Key) -> bytes:
    return key.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def hmac_with_the_public_key(tenant: Tenant, _other: Key, alg: str = "HS256") -> str:
    """The classic: the published key taken for an HMAC secret. Made by hand, since PyJWT refuses to."""
    parts = [{"alg": alg, "typ": "JWT", "kid": tenant.key.kid}, tenant.claims()]
    signed = b".".join(encoded(json.dumps(part).encode()) for part in parts)
    return (signed + b"." + encoded(hmac.new(public_pem(tenant.key), signed, hashlib.sha256).digest())).decode()


def encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def hmac_named_rs256(tenant: Tenant, other: Key) -> str:
    return hmac_with_the_public_key(tenant, other, alg="RS256")


def rs512(tenant: Tenant, _other: Key) -> str:
    return jwt.encode(tenant.claims(), tenant.key.private, algorithm="RS512", headers={"kid": tenant.key.kid})


def without_key_id(tenant: Tenant) -> str:
    return jwt.encode(tenant.claims(), tenant.key.private, algorithm="RS256")


def swapped_payload(tenant: Tenant, _other: Key) -> str:
    head, _, signature = tenant.token().split(".")
    payload = encoded(json.dumps(tenant.claims() | {"oid": "somebody-else"}).encode()).decode()
    return f"{head}.{payload}.{signature}"


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (unsigned, "not signed with RS256"),
        (hmac_with_the_public_key, "not signed with RS256"),
        (hmac_named_rs256, "signature"),
        (rs512, "not signed with RS256"),
        (swapped_payload, "signature"),
        (lambda t, other: t.token(signed_by=Key(t.key.kid, other.private)), "signature"),  # another key, our key id
        (lambda t, other: t.token(signed_by=other), "a key that this tenant does not have"),
        (lambda t, _: without_key_id(t), "names no key"),
        (lambda t, _: t.token(headers={"kid": ""}), "names no key"),
        (lambda t, _: t.token(headers={"crit": ["exp"]}), "not a JWT"),
        (lambda t, _: t.token(headers={"jku": "https://evil.example", "kid": "evil"}), "does not have"),
        (lambda t, _: t.token(exp=int(time.time()) - 120), "expired"),
        (lambda t, _: t.token(nbf=int(time.time()) + 120), "not valid yet"),
        (lambda t, _: t.token(exp=None), "lacks a claim"),
        (lambda t, _: t.token(nbf=None), "lacks a claim"),
        (lambda t, _: t.token(exp=float("inf")), "form"),
        (lambda t, _: t.token(aud="api://other"), "another audience"),
        (lambda t, _: t.token(aud=AUDIENCE + "/"), "another audience"),
        (lambda t, _: t.token(aud=None), "lacks a claim"),
        (lambda t, _: t.token(iss=f"{t.base_url}/{OTHER_TENANT}/v2.0"), "another issuer"),
        (lambda t, _: t.token(iss="https://evil.example/v2.0"), "another issuer"),
        (lambda t, _: t.token(iss=None), "lacks a claim"),
        (lambda t, _: t.token(tid=OTHER_TENANT), "another tenant"),
        (lambda t, _: t.token(tid=None), "another tenant"),
        (lambda t, _: t.token(oid=None), "no object id"),
        (lambda t, _: t.token(oid="a\nb"), "no object id"),
        (lambda t, _: t.token(oid=7), "no object id"),
        (lambda t, _: t.token(padding="x" * 20_000), "too long"),
        (lambda t, _: "", "not a JWT"),
        (lambda t, _: "a.b.c", "not a JWT"),
        (lambda t, _: encoded(b"[" * 9000).decode() + ".e30.AAAA", "not a JWT"),
    ],
)
async def test_forged_token_is_refused_with_reason(
    tenant: Tenant, http: httpx.AsyncClient, second_key: Key, forge: Forge, why: str
) -> None:
    asked = authenticator(tenant, http)
    with pytest.raises(Problem) as refused:
        await asked.authenticate(scope(f"Bearer {forge(tenant, second_key)}"))
    problem = refused.value
    assert (problem.status, problem.code) == (401, "invalid_token")
    assert why in problem.detail
    challenge = problem.headers["WWW-Authenticate"]
    assert challenge == f'Bearer error="invalid_token", error_description="{problem.detail}"'
    await asked.aclose()


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_changed_token_is_refused(tenant: Tenant, verifier: EntraTokenVerifier, data: st.DataObject) -> None:
    token = tenant.token()
    position = data.draw(st.integers(0, len(token) - 2))  # the last character has bits that say nothing
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda c: c != token[position]))
    changed = token[:position] + other + token[position + 1 :]
    with pytest.raises(TokenRefusedError):
        await verifier.verify(changed)


@pytest.mark.parametrize("sent", [(), ("Basic dTpw",), ("",), ("Bearer",)])
async def test_missing_token_challenge_has_no_error(
    tenant: Tenant, http: httpx.AsyncClient, sent: tuple[str, ...]
) -> None:
    with pytest.raises(Problem) as refused:
        await authenticator(tenant, http).authenticate(scope(*sent))
    assert refused.value.status == 401
    assert tenant.fetches == 0
    if sent != ("Bearer",):
        assert refused.value.headers["WWW-Authenticate"] == "Bearer"


async def test_two_authorization_headers_are_refused(tenant: Tenant, http: httpx.AsyncClient) -> None:
    good = f"Bearer {tenant.token()}"
    with pytest.raises(Problem) as refused:
        await authenticator(tenant, http).authenticate(scope(good, good))
    assert refused.value.status == 401
    assert 'error="invalid_request"' in refused.value.headers["WWW-Authenticate"]


@pytest.mark.parametrize("claims", [{"scp": "Voice.Talk other"}, {"roles": ["Voice.Talk"]}])
async def test_required_scope_may_be_scope_or_role(
    tenant: Tenant, http: httpx.AsyncClient, claims: dict[str, Any]
) -> None:
    asked = authenticator(tenant, http, entra_required_scope="Voice.Talk")
    assert (await asked.authenticate(scope(f"Bearer {tenant.token(**claims)}"))).authenticated
    await asked.aclose()


@pytest.mark.parametrize("claims", [{}, {"scp": "Voice.TalkMore"}, {"scp": ["Voice.Talk"]}, {"roles": "Voice.Talk"}])
async def test_missing_required_scope_gets_403(tenant: Tenant, http: httpx.AsyncClient, claims: dict[str, Any]) -> None:
    asked = authenticator(tenant, http, entra_required_scope="Voice.Talk")
    with pytest.raises(Problem) as refused:
        await asked.authenticate(scope(f"Bearer {tenant.token(**claims)}"))
    assert refused.value.status == 403
    assert refused.value.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope", scope="Voice.Talk"'
    await asked.aclose()


# --- the keys


async def test_a_cold_crowd_makes_one_fetch(tenant: Tenant, verifier: EntraTokenVerifier) -> None:
    identities = await asyncio.gather(*(verifier.verify(tenant.token()) for _ in range(50)))
    assert len(identities) == 50
    assert tenant.fetches == 1


async def test_unknown_key_id_fetches_new_keys(
    tenant: Tenant, verifier: EntraTokenVerifier, clock: Clock, second_key: Key
) -> None:
    await verifier.verify(tenant.token())
    tenant.keys = [second_key.jwk()]
    clock.now_s += 60
    await verifier.verify(tenant.token(signed_by=second_key))
    assert tenant.fetches == 2
    with pytest.raises(TokenRefusedError):  # the old one is no longer published
        await verifier.verify(tenant.token())


async def test_unknown_key_ids_cost_one_fetch_a_minute(tenant: Tenant, jwks: JwksCache, clock: Clock) -> None:
    for minute in range(1, 4):
        for number in range(100):
            assert await jwks.key(f"forged-{number}") is None
        assert tenant.fetches == minute
        clock.now_s += 60


async def test_keys_renew_hourly_in_background(tenant: Tenant, jwks: JwksCache, clock: Clock, first_key: Key) -> None:
    await jwks.key(first_key.kid)
    tenant.hangs = asyncio.Event()
    clock.now_s += 3601
    assert await jwks.key(first_key.kid) is not None  # answered at once, from what is known
    tenant.hangs.set()
    await until(lambda: tenant.fetches == 2)
    await jwks.aclose()


@pytest.mark.parametrize("trouble", ["status", "huge", "no keys", "not found"])
async def test_old_keys_last_a_day_while_provider_fails(
    tenant: Tenant, jwks: JwksCache, clock: Clock, first_key: Key, trouble: str
) -> None:
    await jwks.key(first_key.kid)
    match trouble:
        case "status":
            tenant.status = 500
        case "huge":
            tenant.huge = True
        case "no keys":
            tenant.keys = []
        case "not found":
            tenant.status = 404
    clock.now_s += 86_399
    assert await jwks.key("unknown") is None
    assert tenant.fetches == 2
    assert await jwks.key(first_key.kid) is not None
    clock.now_s += 60
    with pytest.raises(JwksUnavailableError):
        await jwks.key(first_key.kid)


async def test_no_keys_mean_503_and_few_fetches(tenant: Tenant, http: httpx.AsyncClient) -> None:
    tenant.status = 503
    asked = authenticator(tenant, http)
    for _ in range(20):
        with pytest.raises(Problem) as refused:
            await asked.authenticate(scope(f"Bearer {tenant.token()}"))
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "5")
    assert tenant.fetches == 1


async def test_provider_is_retried_soon_after_failure(
    tenant: Tenant, verifier: EntraTokenVerifier, clock: Clock
) -> None:
    tenant.status = 503
    with pytest.raises(JwksUnavailableError):
        await verifier.verify(tenant.token())
    tenant.status = 200
    clock.now_s += 5
    await verifier.verify(tenant.token())


async def test_redirect_to_other_keys_is_not_followed(tenant: Tenant, verifier: EntraTokenVerifier) -> None:
    tenant.status = 302
    with pytest.raises(JwksUnavailableError):
        await verifier.verify(tenant.token())
    assert tenant.fetches == 1


@pytest.mark.slow
@retry_if_host_busy()
async def test_silent_provider_costs_2_s_and_no_task(tenant: Tenant, jwks: JwksCache, first_key: Key) -> None:
    before = asyncio.all_tasks()
    tenant.hangs = asyncio.Event()
    began_s = time.monotonic()
    with pytest.raises(JwksUnavailableError):
        await jwks.key(first_key.kid)
    assert time.monotonic() - began_s < 3
    await jwks.aclose()
    tenant.hangs.set()
    await until(lambda: not {task for task in asyncio.all_tasks() - before if task.get_name() == "jwks"})


async def test_a_weak_key_is_none(tenant: Tenant, verifier: EntraTokenVerifier) -> None:
    weak = Key.make("weak", bits=1024)
    tenant.keys.append(weak.jwk())
    with pytest.warns(InsecureKeyLengthWarning):
        token = tenant.token(signed_by=weak)
    with pytest.raises(TokenRefusedError, match="does not have"):
        await verifier.verify(token)


async def test_odd_jwks_entries_are_skipped(tenant: Tenant, jwks: JwksCache, first_key: Key) -> None:
    good = first_key.jwk()
    tenant.keys = [
        {},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric"},
        good | {"kid": None},
        good | {"kid": "for-encryption", "use": "enc"},
        {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "broken"},
        good,
    ]
    assert await jwks.key(first_key.kid) is not None
    for kid in ("symmetric", "for-encryption", "broken"):
        assert await jwks.key(kid) is None


# --- the settings


@pytest.mark.parametrize("tenant_id", ["common", "Organizations", "contoso.onmicrosoft.com"])
def test_invalid_tenant_fails_start(tenant_id: str) -> None:
    with pytest.raises(SettingsError, match="BROKER_ENTRA_TENANT_ID: not the id of one tenant"):
        Settings.load(_env_file=None, auth="entra", entra_tenant_id=tenant_id, entra_audience=AUDIENCE)


def test_unquotable_required_scope_fails_start() -> None:
    with pytest.raises(ValidationError):
        Settings(_env_file=None, entra_required_scope='a"b')


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # what is waited for has no event of its own
            await asyncio.sleep(0.005)
