"""Credentials: one fetch for all callers, the last token kept, and a stalled fetch that delays only one of them."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from strategies.credentials import AccessToken, Authorization, Credentials, EntraTokens
from strategies.errors import CredentialError
from tests.support.machine import retry_if_host_busy

KEY = SecretStr("the-key-0123456789")


@dataclass
class Clocks:
    """Our wall clock and our monotonic one, both set by hand."""

    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Source:
    """Gives tokens in turn: a number is a lifetime in seconds, an exception is raised; waits while not `open`."""

    clock: Clocks
    script: list[float | Exception] = field(default_factory=lambda: [3600.0])
    calls: int = 0
    closed: bool = False
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.open.set()

    async def fetch(self) -> AccessToken:
        self.calls += 1
        step = self.script[min(self.calls, len(self.script)) - 1]
        await self.open.wait()
        if isinstance(step, Exception):
            raise step
        return AccessToken(SecretStr(f"token-{self.calls}"), self.clock.now_s + step)

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> Clocks:
    return Clocks()


def tokens(source: Source, clock: Clocks, timeout_s: float = 5) -> EntraTokens:
    return EntraTokens(source, timeout_s=timeout_s, clock=clock, monotonic=clock)


async def get(entra: EntraTokens, timeout_s: float = 10) -> str:
    return (await entra.get(timeout_s=timeout_s)).get_secret_value()


async def settled() -> None:
    """Lets flights that have nothing to wait for land."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("waiting", [1, 2, 5, 500])
async def test_concurrent_callers_share_one_fetch(waiting: int, clock: Clocks) -> None:
    source = Source(clock)
    source.open.clear()
    entra = tokens(source, clock)
    asking = [asyncio.create_task(get(entra)) for _ in range(waiting)]
    await settled()
    source.open.set()
    assert set(await asyncio.gather(*asking)) == {"token-1"}
    assert source.calls == 1


async def test_token_is_kept_and_renewed_early(clock: Clocks) -> None:
    source = Source(clock, [3600.0])
    entra = tokens(source, clock)
    assert await get(entra) == "token-1"
    clock.now_s += 3600 - 301  # 301 s are left: more than the 300 at which it is renewed
    assert await get(entra) == "token-1"
    await settled()
    assert source.calls == 1
    clock.now_s += 2
    assert await get(entra) == "token-1", "nobody waits for a renewal"
    await settled()
    assert await get(entra) == "token-2"
    assert source.calls == 2


async def test_failed_renewal_keeps_the_token(clock: Clocks) -> None:
    source = Source(clock, [600.0, OSError("IMDS"), OSError("IMDS"), 3600.0])
    entra = tokens(source, clock)
    await get(entra)
    clock.now_s += 400  # 200 s are left
    for _ in range(20):
        assert await get(entra) == "token-1"
        await settled()
    assert source.calls == 2, "it is not tried again with every request"
    clock.now_s += 31
    assert await get(entra) == "token-1"
    await settled()
    assert source.calls == 3
    clock.now_s += 200  # 631 s: expired
    assert await get(entra) == "token-4"


@retry_if_host_busy()
async def test_hanging_renewal_delays_nobody(clock: Clocks) -> None:
    source = Source(clock, [600.0])
    entra = tokens(source, clock)
    await get(entra)
    source.open.clear()
    clock.now_s += 400
    began_s = time.monotonic()
    assert [await get(entra) for _ in range(10)] == ["token-1"] * 10
    assert time.monotonic() - began_s < 0.5
    await settled()
    assert source.calls == 2
    await entra.aclose()


async def test_expired_token_is_given_to_nobody(clock: Clocks) -> None:
    source = Source(clock, [60.0, OSError("IMDS")])
    entra = tokens(source, clock)
    await get(entra)
    clock.now_s += 61
    with pytest.raises(CredentialError):
        await get(entra)


async def test_failed_fetch_is_retried_after_a_pause(clock: Clocks) -> None:
    source = Source(clock, [OSError("IMDS"), 3600.0])
    entra = tokens(source, clock)
    for _ in range(5):
        with pytest.raises(CredentialError):
            await get(entra)
    assert source.calls == 1
    clock.now_s += 2.1
    assert await get(entra) == "token-2"


@retry_if_host_busy()
async def test_stalled_fetch_delays_only_the_first(clock: Clocks) -> None:
    source = Source(clock)
    source.open.clear()
    entra = tokens(source, clock)
    waiting = asyncio.create_task(get(entra, timeout_s=0.05))
    await settled()
    clock.now_s += 1.5
    with pytest.raises(CredentialError, match="in time"):
        await waiting
    began_s = time.monotonic()
    with pytest.raises(CredentialError, match="still waiting"):
        await get(entra, timeout_s=5)
    assert time.monotonic() - began_s < 1
    source.open.set()
    await settled()
    assert await get(entra) == "token-1"
    assert source.calls == 1


async def test_cancelled_caller_marks_the_stall(clock: Clocks) -> None:
    source = Source(clock)
    source.open.clear()
    entra = tokens(source, clock)
    waiting = asyncio.create_task(get(entra, timeout_s=60))
    await settled()
    clock.now_s += 1.5
    waiting.cancel()
    await asyncio.wait({waiting})
    with pytest.raises(CredentialError, match="still waiting"):
        await get(entra, timeout_s=60)
    await entra.aclose()


async def test_hanging_fetch_ends_at_its_own_limit(clock: Clocks) -> None:
    source = Source(clock)
    source.open.clear()
    entra = tokens(source, clock, timeout_s=0.05)
    with capture_logs() as logs, pytest.raises(CredentialError):
        await get(entra, timeout_s=5)
    assert [(entry["event"], entry["error"]) for entry in logs] == [("no_entra_token", "TimeoutError")]


async def test_failure_log_has_advice_and_no_text(clock: Clocks) -> None:
    source = Source(clock, [ValueError("sent secret-value")])
    with capture_logs() as logs, pytest.raises(CredentialError) as raised:
        await get(tokens(source, clock))
    (entry,) = logs
    assert (entry["log_level"], entry["error"]) == ("error", "ValueError")
    assert "managed identity" in entry["do"]
    assert "secret-value" not in f"{logs} {raised.value!r}"


async def test_close_ends_fetch_and_source(clock: Clocks) -> None:
    source = Source(clock)
    source.open.clear()
    entra = tokens(source, clock)
    before = asyncio.all_tasks()
    with pytest.raises(CredentialError):
        await get(entra, timeout_s=0.01)
    await entra.aclose()
    assert source.closed
    assert asyncio.all_tasks() == before


async def current(credentials: Credentials) -> str:
    return (await credentials.current(timeout_s=1)).kind


async def test_key_is_used_until_azure_refuses_it(clock: Clocks) -> None:
    source = Source(clock)
    credentials = Credentials(key=KEY, entra=tokens(source, clock), monotonic=clock)
    assert await current(credentials) == "key"
    assert source.calls == 0
    assert credentials.keys_refused()
    assert await current(credentials) == "entra"
    clock.now_s += 599
    assert await current(credentials) == "entra"
    clock.now_s += 2  # 601 s: the key has another chance after 600
    assert await current(credentials) == "key"


async def test_refused_keys_are_logged_once(clock: Clocks) -> None:
    credentials = Credentials(key=KEY, entra=tokens(Source(clock), clock), monotonic=clock)
    with capture_logs() as logs:
        for _ in range(10):
            credentials.keys_refused()
    assert [entry["event"] for entry in logs] == ["keys_are_off"]


async def test_refused_key_without_entra_stays() -> None:
    credentials = Credentials(key=KEY, entra=None)
    assert not credentials.keys_refused()
    assert await current(credentials) == "key"


def test_neither_key_nor_entra_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither"):
        Credentials(key=None, entra=None)


@pytest.mark.parametrize(("key", "fetched"), [(None, 1), (KEY, 0)])
async def test_warm_fetches_the_first_token_if_needed(key: SecretStr | None, fetched: int, clock: Clocks) -> None:
    source = Source(clock)
    credentials = Credentials(key=key, entra=tokens(source, clock))
    await credentials.warm()
    assert source.calls == fetched
    await credentials.aclose()
    assert source.closed


async def test_warm_raises_nothing(clock: Clocks) -> None:
    await Credentials(key=None, entra=tokens(Source(clock, [OSError("IMDS")]), clock)).warm()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the-key-0123456789", True),
        ("ek_the-key-0123456789x", True),
        ("token-1-is-not-it", False),
        ("", False),
        ("ek_simulated", False),
    ],
)
async def test_own_credential_is_found_in_text(text: str, found: bool, clock: Clocks) -> None:
    assert Credentials(key=KEY, entra=tokens(Source(clock), clock)).appear_in(text) is found


async def test_expired_entra_token_is_found_in_text(clock: Clocks) -> None:
    class Long(Source):
        async def fetch(self) -> AccessToken:
            return AccessToken(SecretStr("a-long-entra-token"), self.clock.now_s + 60)

    entra = tokens(Long(clock), clock)
    credentials = Credentials(key=None, entra=entra)
    await credentials.current(timeout_s=1)
    clock.now_s += 61
    assert credentials.appear_in("ek_a-long-entra-token")


@pytest.mark.parametrize(
    ("authorization", "headers"),
    [
        (Authorization("key", SecretStr("k")), {"api-key": "k"}),
        (Authorization("entra", SecretStr("t")), {"Authorization": "Bearer t"}),
    ],
)
def test_each_credential_has_its_header(authorization: Authorization, headers: Any) -> None:
    assert authorization.headers() == headers


async def test_reprs_mask_secrets(clock: Clocks) -> None:
    entra = tokens(Source(clock), clock)
    credentials = Credentials(key=KEY, entra=entra)
    credentials.keys_refused()
    authorization = await credentials.current(timeout_s=1)
    token = AccessToken(SecretStr("token-1"), 1.0)
    shown = f"{credentials!r}{vars(credentials)!r}{entra!r}{vars(entra)!r}{authorization!r}{token!r}"
    assert "token-1" not in shown
    assert KEY.get_secret_value() not in shown
