"""Each strategy's URL, headers and body; what it grants; and what it does about an api-version that is refused."""

import json
import time
from dataclasses import replace

import httpx
import pytest
import respx
from pydantic import SecretStr

from strategies.base import EphemeralGrant
from strategies.chain import WebSocketProxy
from strategies.credentials import AccessToken, Credentials, EntraTokens
from strategies.endpoint import Target, parse_target
from strategies.errors import ApiVersionError, MisconfiguredError, PermanentError
from strategies.routes import DirectDeployment, Ga, Project, Unified
from tests.strategies.fakes import (
    FLAT_BODY,
    GA_BODY,
    KEY,
    NOW_S,
    SPEC,
    key_credentials,
    minted,
    upstream_over,
    version_refused,
)  # fmt: skip

UNIFIED_TARGET = parse_target("https://x.services.ai.azure.com", project="demo")
DIRECT_TARGET = parse_target("https://x.openai.azure.com")
VERSION = "2025-10-01"

GA_URL = "https://x.openai.azure.com/openai/v1/realtime/client_secrets"
DEPLOYMENT_URL = "https://x.openai.azure.com/openai/deployments/gpt-realtime/realtime/client_secrets"
PROJECT_URL = "https://x.services.ai.azure.com/api/projects/demo/openai/realtime/client_secrets"
PROJECT_GA_URL = "https://x.services.ai.azure.com/api/projects/demo/openai/v1/realtime/client_secrets"
UNIFIED_URL = "https://x.services.ai.azure.com/openai/realtime/client_secrets"


class Tokens:
    """Entra's fake."""

    async def fetch(self) -> AccessToken:
        return AccessToken(SecretStr("entra-token-0123456789"), time.time() + 3600)

    async def aclose(self) -> None:
        pass


def entra_credentials() -> Credentials:
    return Credentials(key=None, entra=EntraTokens(Tokens(), timeout_s=1))


def assert_sent(request: httpx.Request, body: object, **headers: str | None) -> None:
    """The request's body, and headers by name with underscores; None for one that must not be there."""
    assert json.loads(request.content) == body
    assert request.headers["content-type"] == "application/json"
    assert request.headers["content-length"] == str(len(request.content))
    for name, value in headers.items():
        assert request.headers.get(name.replace("_", "-")) == value, name
    assert "openai-beta" not in request.headers
    assert "cookie" not in request.headers


async def test_ga_posts_the_nested_body(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(GA_URL).mock(minted())
    grant = await Ga(UNIFIED_TARGET, upstream_over(respx_mock)).mint(SPEC, timeout_s=1)
    request = route.calls.last.request
    assert request.url.query == b""
    assert_sent(request, GA_BODY, api_key=KEY, authorization=None)
    assert grant == EphemeralGrant(
        strategy="ga",
        token=SecretStr("ek_minted"),
        expires_at=grant.expires_at,
        expires_in_s=60,
        received_at_s=grant.received_at_s,
        endpoint="https://x.openai.azure.com",
        dialect="ga",
        voice="marin",
    )
    assert grant.expires_at.timestamp() == NOW_S + 60


async def test_direct_deployment_posts_the_flat_body(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(DEPLOYMENT_URL, params={"api-version": VERSION}).mock(minted())
    strategy = DirectDeployment(DIRECT_TARGET, upstream_over(respx_mock), api_version=VERSION)
    grant = await strategy.mint(SPEC, timeout_s=1)
    assert_sent(route.calls.last.request, FLAT_BODY, api_key=KEY)
    assert (grant.strategy, grant.endpoint) == ("direct_deployment", "https://x.openai.azure.com")
    assert (grant.dialect, grant.voice) == ("preview", "en-US-Ava:DragonHDLatestNeural")


async def test_deployment_is_quoted_in_the_path(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(url__regex=r".*/openai/deployments/my%20model%2F2/realtime/.*").mock(minted())
    strategy = DirectDeployment(DIRECT_TARGET, upstream_over(respx_mock), api_version=VERSION)
    await strategy.mint(replace(SPEC, model="my model/2"), timeout_s=1)
    assert route.called


async def test_project_sends_key_in_both_headers(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(PROJECT_URL, params={"api-version": VERSION}).mock(minted())
    grant = await Project(UNIFIED_TARGET, upstream_over(respx_mock), api_version=VERSION).mint(SPEC, timeout_s=1)
    assert_sent(route.calls.last.request, FLAT_BODY, api_key=KEY, ocp_apim_subscription_key=KEY, authorization=None)
    assert (grant.strategy, grant.endpoint, grant.dialect) == ("project", "https://x.services.ai.azure.com", "preview")


async def test_project_sends_entra_token_once(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(PROJECT_URL).mock(minted())
    upstream = upstream_over(respx_mock, entra_credentials())
    await Project(UNIFIED_TARGET, upstream, api_version=VERSION).mint(SPEC, timeout_s=1)
    assert_sent(
        route.calls.last.request,
        FLAT_BODY,
        authorization="Bearer entra-token-0123456789",
        api_key=None,
        ocp_apim_subscription_key=None,
    )


async def test_unified_posts_the_flat_body(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(UNIFIED_URL, params={"api-version": VERSION}).mock(minted())
    grant = await Unified(UNIFIED_TARGET, upstream_over(respx_mock), api_version=VERSION).mint(SPEC, timeout_s=1)
    assert_sent(route.calls.last.request, FLAT_BODY, api_key=KEY, ocp_apim_subscription_key=None)
    assert (grant.strategy, grant.endpoint, grant.dialect) == ("unified", "https://x.services.ai.azure.com", "preview")


@pytest.mark.parametrize(
    ("target", "applying"),
    [
        (UNIFIED_TARGET, {"ga", "direct_deployment", "project", "unified", "websocket_proxy"}),
        (parse_target("https://x.services.ai.azure.com"), {"ga", "direct_deployment", "unified", "websocket_proxy"}),
        (parse_target("https://x.openai.azure.com", project="demo"), {"ga", "direct_deployment", "websocket_proxy"}),
    ],
)
def test_strategy_applies_where_its_route_is(target: Target, applying: set[str]) -> None:
    all_of_them = (Ga, DirectDeployment, Project, Unified, WebSocketProxy)
    assert {strategy.name for strategy in all_of_them if strategy.applies(target)} == applying


async def test_accepted_api_version_is_asked_first_later(
    respx_mock: respx.MockRouter,
) -> None:
    newer = respx_mock.post(UNIFIED_URL, params={"api-version": VERSION}).mock(version_refused())
    older = respx_mock.post(UNIFIED_URL, params={"api-version": "2024-10-01-preview"}).mock(minted())
    strategy = Unified(UNIFIED_TARGET, upstream_over(respx_mock), api_version=VERSION)
    for _ in range(3):
        await strategy.mint(SPEC, timeout_s=1)
    assert (newer.call_count, older.call_count) == (1, 3)


async def test_oldest_api_version_is_tried_once(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(UNIFIED_URL, params={"api-version": "2024-10-01-preview"}).mock(version_refused())
    strategy = Unified(UNIFIED_TARGET, upstream_over(respx_mock), api_version="2024-10-01-preview")
    with pytest.raises(ApiVersionError):
        await strategy.mint(SPEC, timeout_s=1)
    assert route.call_count == 1


async def test_other_refusal_ends_the_attempt(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(UNIFIED_URL).respond(404, json={"error": {"code": "404", "message": "Resource not found"}})
    with pytest.raises(PermanentError):
        await Unified(UNIFIED_TARGET, upstream_over(respx_mock), api_version=VERSION).mint(SPEC, timeout_s=1)
    assert route.call_count == 1


async def test_project_falls_back_to_nested_route(
    respx_mock: respx.MockRouter,
) -> None:
    flat = respx_mock.post(PROJECT_URL).mock(version_refused())
    nested = respx_mock.post(PROJECT_GA_URL).mock(minted())
    strategy = Project(UNIFIED_TARGET, upstream_over(respx_mock), api_version=VERSION)
    grants = [await strategy.mint(SPEC, timeout_s=1) for _ in range(3)]
    assert (flat.call_count, nested.call_count) == (2, 3)
    assert_sent(nested.calls.last.request, GA_BODY, api_key=KEY, ocp_apim_subscription_key=KEY)
    assert {(grant.dialect, grant.voice, grant.strategy) for grant in grants} == {("ga", "marin", "project")}


async def test_project_returns_to_flat_route(respx_mock: respx.MockRouter) -> None:
    flat = respx_mock.post(PROJECT_URL).mock(side_effect=[version_refused(), version_refused(), minted("ek_flat")])
    nested = respx_mock.post(PROJECT_GA_URL).mock(side_effect=[minted(), httpx.Response(404)])
    strategy = Project(UNIFIED_TARGET, upstream_over(respx_mock), api_version=VERSION)
    await strategy.mint(SPEC, timeout_s=1)
    with pytest.raises(PermanentError):
        await strategy.mint(SPEC, timeout_s=1)
    grant = await strategy.mint(SPEC, timeout_s=1)
    assert (grant.token.get_secret_value(), grant.dialect) == ("ek_flat", "preview")
    assert (flat.call_count, nested.call_count) == (3, 2)


async def test_disabled_keys_switch_to_entra(respx_mock: respx.MockRouter) -> None:
    disabled = httpx.Response(403, json={"error": {"code": "AuthenticationTypeDisabled", "message": "off"}})
    route = respx_mock.post(GA_URL)
    route.side_effect = lambda request: disabled if "api-key" in request.headers else minted()
    credentials = Credentials(key=SecretStr(KEY), entra=EntraTokens(Tokens(), timeout_s=1))
    strategy = Ga(DIRECT_TARGET, upstream_over(respx_mock, credentials))
    for _ in range(2):
        await strategy.mint(SPEC, timeout_s=1)
    assert ["key" if "api-key" in call.request.headers else "entra" for call in route.calls] == [
        "key",
        "entra",
        "entra",
    ]


async def test_disabled_keys_without_entra(respx_mock: respx.MockRouter) -> None:
    respx_mock.post(GA_URL).respond(403, json={"error": {"code": "AuthenticationTypeDisabled", "message": "off"}})
    with pytest.raises(MisconfiguredError, match="AZURE_VOICELIVE_AUTH=entra"):
        await Ga(DIRECT_TARGET, upstream_over(respx_mock, key_credentials())).mint(SPEC, timeout_s=1)


def test_proxy_is_granted_at_once() -> None:
    assert WebSocketProxy().grant().strategy == WebSocketProxy.name == "websocket_proxy"
