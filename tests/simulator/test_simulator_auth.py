"""Credentials: which are taken where, how each refusal is shaped, and that ephemeral secrets really expire."""

import httpx
import pytest
from pydantic import SecretStr
from starlette.datastructures import Headers

from token_broker.simulator import RunningSimulator, SimulatorConfig, serve
from token_broker.simulator.auth import Credential, credential_of
from token_broker.simulator.ephemeral import EphemeralSecrets
from token_broker.simulator.resource import Resource

GA = ("/openai/v1/realtime/client_secrets", {"session": {"type": "realtime", "model": "gpt-realtime"}})
FLAT = ("/openai/realtime/client_secrets?api-version=2025-10-01", {"model": "gpt-realtime"})
NOBODY = SecretStr("entra-without-role")


async def _mint(azure: RunningSimulator, route: tuple[str, object], headers: dict[str, str]) -> httpx.Response:
    async with httpx.AsyncClient(base_url=azure.base_url, headers=headers) as client:
        return await client.post(route[0], json=route[1])


@pytest.mark.parametrize("route", [GA, FLAT], ids=["ga", "flat"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"api-key": "wrong"}, {"api-key": ""}, {"authorization": "Bearer wrong"}, {"authorization": "Basic eDp5"}],
)
async def test_bad_credential_is_401_in_flat_shape(
    azure: RunningSimulator, route: tuple[str, object], headers: dict[str, str]
) -> None:
    answer = await _mint(azure, route, headers)
    assert answer.status_code == 401
    assert answer.json()["statusCode"] == 401
    assert answer.json()["message"]


@pytest.mark.parametrize("route", [GA, FLAT], ids=["ga", "flat"])
async def test_entra_token_is_taken_as_bearer(azure: RunningSimulator, route: tuple[str, object]) -> None:
    assert (await _mint(azure, route, {"authorization": "Bearer simulated-entra-token"})).status_code == 200


async def test_key_as_bearer_is_refused_off_v1(azure: RunningSimulator) -> None:
    assert (await _mint(azure, FLAT, {"authorization": "Bearer simulated-key"})).status_code == 401


async def test_ephemeral_secret_mints_nothing(azure: RunningSimulator) -> None:
    value = (await _mint(azure, GA, {"api-key": "simulated-key"})).json()["value"]
    assert (await _mint(azure, GA, {"authorization": f"Bearer {value}"})).status_code == 401


async def test_principal_without_role_is_401() -> None:
    async with serve(SimulatorConfig(roleless_entra_tokens=frozenset({NOBODY}))) as azure:
        answer = await _mint(azure, GA, {"authorization": f"Bearer {NOBODY.get_secret_value()}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "PermissionDenied")


async def test_disabled_keys_are_403_entra_is_not() -> None:
    async with serve(SimulatorConfig(keys_disabled=True)) as azure:
        by_key = await _mint(azure, GA, {"api-key": "simulated-key"})
        as_bearer = await _mint(azure, GA, {"authorization": "Bearer simulated-key"})
        by_entra = await _mint(azure, GA, {"authorization": "Bearer simulated-entra-token"})
    for refused in (by_key, as_bearer):
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "AuthenticationTypeDisabled")
    assert by_entra.status_code == 200


def test_secret_expires_at_its_stated_second() -> None:
    resource = Resource(SimulatorConfig())
    minted = resource.secrets.mint("ga", {}, 60)
    headers = Headers({"authorization": f"Bearer {minted.value.get_secret_value()}"})
    assert resource.credential_of(headers) is Credential.EPHEMERAL
    resource.clock.offset_s += 61
    assert resource.credential_of(headers) is Credential.EPHEMERAL_EXPIRED


def test_oldest_secrets_are_forgotten() -> None:
    secrets = EphemeralSecrets(lambda: 1000.0, limit=3)
    values = [secrets.mint("ga", {}, 60).value.get_secret_value() for _ in range(4)]
    assert [secrets.find(value) is not None for value in values] == [False, True, True, True]


def test_api_key_header_wins_over_bearer() -> None:
    secrets = EphemeralSecrets(lambda: 0.0)
    headers = Headers({"api-key": "simulated-key", "authorization": "Bearer nonsense"})
    assert credential_of(headers, SimulatorConfig(), secrets) is Credential.KEY
