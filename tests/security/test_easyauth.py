"""The platform's principal header: who it names, and that nothing but the platform's own form is believed."""

import base64
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_broker.security.authentication import (
    AnonymousAuthenticator,
    EasyAuthAuthenticator,
    Principal,
    make_authenticator,
)
from token_broker.security.tokens import ANONYMOUS
from token_broker.settings import Settings
from token_broker.web.requests import Problem

HEADER = b"x-ms-client-principal"
OID = "http://schemas.microsoft.com/identity/claims/objectidentifier"
NAME_ID = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier"


def principal_header(*claims: tuple[str, object], provider: object = "aad") -> bytes:
    document = {"auth_typ": provider, "claims": [{"typ": typ, "val": val} for typ, val in claims], "role_typ": "r"}
    return base64.b64encode(json.dumps(document).encode())


def scope(*values: bytes, peer: str = "192.0.2.1", **headers: str) -> dict[str, Any]:
    more = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "http",
        "scheme": "http",
        "client": (peer, 1),
        "server": ("127.0.0.1", 8080),
        "headers": [*((HEADER, value) for value in values), *more],
    }


@pytest.mark.parametrize(
    ("claims", "provider", "principal_id"),
    [
        ([(OID, "o-1"), (NAME_ID, "pairwise")], "aad", "easyauth:aad:o-1"),
        ([("oid", "o-1"), ("sub", "pairwise")], "aad", "easyauth:aad:o-1"),
        ([(NAME_ID, "1234567")], "google", "easyauth:google:1234567"),
        ([("sub", "auth0|7")], "auth0", "easyauth:auth0:auth0|7"),
        ([(OID, "o-1"), ("oid", "o-1")], "aad", "easyauth:aad:o-1"),  # twice the same is one
    ],
)
async def test_principal_is_object_id_else_name_id(
    claims: list[tuple[str, object]], provider: str, principal_id: str
) -> None:
    principal = await EasyAuthAuthenticator().authenticate(scope(principal_header(*claims, provider=provider)))
    assert principal == Principal(principal_id, principal_id)
    assert principal.authenticated
    assert principal.subject == principal_id.split(":", 2)[2]


def static_web_apps(**fields: object) -> bytes:
    """The principal as Static Web Apps sends it; a field of None is left out."""
    document = {
        "identityProvider": "github",
        "userId": "d75b260a64504067bfc5b2905e3b8182",
        "userDetails": "octocat",
        "userRoles": ["anonymous", "authenticated"],
        **fields,
    }
    return base64.b64encode(json.dumps({name: value for name, value in document.items() if value is not None}).encode())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"userDetails": None},
        {"userRoles": ["authenticated", "anonymous", "admin"]},
        {"claims": [{"typ": "name", "val": "Mona"}]},
    ],
)
async def test_static_web_apps_principal_is_taken(fields: dict[str, object]) -> None:
    principal = await EasyAuthAuthenticator().authenticate(scope(static_web_apps(**fields)))
    assert principal.id == "easyauth:github:d75b260a64504067bfc5b2905e3b8182"
    assert principal.subject == "d75b260a64504067bfc5b2905e3b8182"


async def test_user_of_many_groups_is_taken() -> None:
    groups = [("groups", f"00000000-0000-0000-0000-{number:012}") for number in range(200)]  # Entra lists no more
    value = principal_header((OID, "o-1"), *groups)
    assert len(value) > 8192
    assert (await EasyAuthAuthenticator().authenticate(scope(value))).id == "easyauth:aad:o-1"


GOOD = principal_header((OID, "o-1"))


@pytest.mark.parametrize(
    "values",
    [
        [],
        [GOOD, GOOD],  # one was not the platform's
        [GOOD, principal_header((OID, "o-2"))],
        [GOOD + b", " + GOOD],
        [b""],
        [b"o-1"],
        [base64.b64encode(b"{")],
        [base64.b64encode(b"[]")],
        [base64.b64encode(b"\xff")],
        [base64.b64encode(b"[" * 9000)],
        [base64.b64encode(b"{}" + b" " * 40_000)],
        [principal_header()],
        [principal_header((OID, "o-1"), (OID, "o-2"))],  # which of the two?
        [principal_header((OID, ""))],
        [principal_header((OID, 7))],
        [principal_header((OID, "a\nb"))],
        [principal_header((OID, " o-1"))],
        [principal_header((OID, "x" * 256))],
        [principal_header((OID, None), (NAME_ID, "n"))],  # an object id that can't be read is no reason to look on
        [principal_header((OID, "o-1"), provider=None)],
        [principal_header((OID, "o-1"), provider="aad:evil")],
        [static_web_apps(userRoles=["anonymous"])],  # nobody has signed in
        [static_web_apps(userRoles="authenticated")],
        [static_web_apps(userRoles=None)],
        [static_web_apps(userId=None)],
        [static_web_apps(userId=7)],
        [static_web_apps(userId="a\nb")],
        [static_web_apps(identityProvider=None)],
        [static_web_apps(identityProvider="aad:o")],
        [static_web_apps(auth_typ="aad")],  # two shapes in one
        [base64.b64encode(json.dumps({"userId": "o-1", "claims": {"oid": "o-1"}}).encode())],
    ],
)
async def test_invalid_principal_header_gets_401(values: list[bytes]) -> None:
    with pytest.raises(Problem) as refused:
        await EasyAuthAuthenticator().authenticate(scope(*values))
    assert refused.value.status == 401
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"


KEYS = st.sampled_from(["claims", "auth_typ", "typ", "val", "identityProvider", "userId", "userRoles"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


@given(st.binary(max_size=400) | ANY_JSON.map(lambda document: base64.b64encode(json.dumps(document).encode())))
async def test_any_header_yields_principal_or_401(value: bytes) -> None:
    try:
        outcome = (await EasyAuthAuthenticator().authenticate(scope(value))).id.partition(":")[0]
    except Problem as problem:
        outcome = str(problem.status)
    assert outcome in {"easyauth", "401"}


async def test_principal_header_ignored_without_auth() -> None:
    principal = await AnonymousAuthenticator(()).authenticate(scope(GOOD, authorization="Bearer x"))
    assert (principal.id, principal.authenticated) == (ANONYMOUS, False)


@pytest.mark.parametrize(
    ("trusted", "key"), [((), "192.0.2.1"), (("1",), "2001:db8::/64"), (("198.51.100.0/24",), "192.0.2.1")]
)
async def test_anonymous_limit_key_is_resolved_address(trusted: tuple[str, ...], key: str) -> None:
    principal = await AnonymousAuthenticator(trusted).authenticate(scope(x_forwarded_for="2001:db8::9"))
    assert principal.limit_key == key


async def test_the_settings_choose_who_asks() -> None:
    async with httpx.AsyncClient(
        trust_env=False, transport=httpx.MockTransport(lambda _: httpx.Response(500))
    ) as client:
        for auth, kind in ((None, "Anonymous"), ("none", "Anonymous"), ("easyauth", "EasyAuth"), ("entra", "Entra")):
            settings = Settings(_env_file=None, auth=auth, entra_tenant_id="t", entra_audience="a")
            assert type(make_authenticator(settings, client)).__name__ == f"{kind}Authenticator"
