"""The credential for Azure: the resource key, or an Entra token. The only module that uses azure-identity.

`auto` uses the key; it uses Entra where there is no key, or where Azure answers that keys are switched off.

azure-identity alone is not enough (docs/azure.md §1.3): a cold burst makes one fetch per request, an IMDS endpoint can
hang for minutes, and a failed renewal loses a token that is still valid. Hence one fetch at a time serves all callers,
a token is kept until it expires, and it is renewed before.
"""

import asyncio
import contextlib
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import structlog
from pydantic import SecretStr

from strategies.endpoint import cloud_of
from strategies.errors import CredentialError
from strategies.outbound_proxy import OutboundProxy
from strategies.single_flight import SingleFlight

if TYPE_CHECKING:
    from azure.identity.aio import DefaultAzureCredential

__all__ = ["AccessToken", "Authorization", "Credentials", "EntraTokens", "TokenSource", "azure_identity_source"]

log = structlog.get_logger("token_broker.credentials")

_RENEW_BEFORE_S = 300
# After a failed renewal; without it every request would start another one.
_RENEW_PAUSE_S = 30
# After a failed fetch without a token: until then callers fail at once, since each would wait for the same failure.
_FAILURE_KEPT_S = 2
_OVERDUE_AFTER_S = 1
# Then the key is tried again: an operator may have switched keys on.
_KEYS_OFF_KEPT_S = 600
# Shorter secrets exist in tests alone, and would be found in almost any text.
_MIN_SEARCHED_CHARS = 8


@dataclass(frozen=True, slots=True)
class Authorization:
    """One credential as it is sent."""

    kind: Literal["key", "entra"]
    secret: SecretStr

    def headers(self) -> dict[str, str]:
        """The header that carries it."""
        value = self.secret.get_secret_value()
        return {"api-key": value} if self.kind == "key" else {"Authorization": f"Bearer {value}"}


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An Entra token and its expiry, in unix seconds of our own clock."""

    secret: SecretStr
    expires_on_s: float


class TokenSource(Protocol):
    """Where Entra tokens come from."""

    async def fetch(self) -> AccessToken:
        """A new token. May raise anything."""
        ...

    async def aclose(self) -> None:
        """Frees what `fetch` opened."""
        ...


class EntraTokens:
    """Keeps the last token, and renews it by one fetch at a time of at most `timeout_s`."""

    def __init__(
        self,
        source: TokenSource,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._clock = clock
        self._monotonic = monotonic
        self._token: AccessToken | None = None
        self._fetches: SingleFlight[None, None] = SingleFlight("entra-token")
        self._fetch_began_s = 0.0
        self._overdue = False  # a caller has waited in vain for the running fetch: later ones fail at once
        self._failed_at_s: float | None = None

    async def get(self, *, timeout_s: float) -> SecretStr:
        """A token that has not expired. Raises CredentialError where there is none within `timeout_s`."""
        if (token := self._valid()) is not None:
            if token.expires_on_s - self._clock() < _RENEW_BEFORE_S and not self._failed_within(_RENEW_PAUSE_S):
                self._start_fetch()
            return token.secret
        if self._failed_within(_FAILURE_KEPT_S):
            raise CredentialError("Entra gave no token a moment ago")
        fetch = self._start_fetch()
        if self._overdue:
            raise CredentialError("Entra has not answered for a while; still waiting for it")
        try:
            await asyncio.wait({fetch}, timeout=timeout_s)
        finally:  # a caller with a time limit of its own is cancelled here
            self._overdue = not fetch.done() and self._monotonic() - self._fetch_began_s >= _OVERDUE_AFTER_S
        if (token := self._valid()) is not None:
            return token.secret
        if not fetch.done():
            raise CredentialError("Entra gave no token in time; is a managed identity assigned, and its endpoint up?")
        raise CredentialError("Entra gave no token; the log says which error it was")

    @property
    def last(self) -> SecretStr | None:
        """The last token that was fetched, expired or not; None before the first."""
        return self._token.secret if self._token is not None else None

    async def aclose(self) -> None:
        await self._fetches.aclose()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._source.aclose(), timeout=1)

    def _valid(self) -> AccessToken | None:
        return self._token if self._token is not None and self._token.expires_on_s > self._clock() else None

    def _failed_within(self, seconds: float) -> bool:
        return self._failed_at_s is not None and self._monotonic() - self._failed_at_s < seconds

    def _start_fetch(self) -> asyncio.Task[None]:
        if None not in self._fetches:
            self._fetch_began_s = self._monotonic()
            self._overdue = False
        return self._fetches.start(None, self._fetch)

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                self._token = await self._source.fetch()
            self._failed_at_s = None
        except Exception as error:  # noqa: BLE001  # azure-identity raises many kinds; its texts may quote what it sent
            self._failed_at_s = self._monotonic()
            log.error(
                "no_entra_token",
                error=type(error).__name__,
                do="check the managed identity, its role and AZURE_CLIENT_ID; or set AZURE_VOICELIVE_KEY",
            )


class Credentials:
    """The process's one credential for Azure: the key, Entra, or the key until Azure answers that keys are off."""

    def __init__(
        self,
        *,
        key: SecretStr | None,
        entra: EntraTokens | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if key is None and entra is None:
            raise ValueError("neither a key nor Entra")
        self._key = key
        self._entra = entra
        self._monotonic = monotonic
        self._keys_off_until_s: float | None = None

    async def current(self, *, timeout_s: float) -> Authorization:
        """The credential to use now. Raises CredentialError if no Entra token comes within `timeout_s`."""
        if self._key is not None and not self._keys_off():
            return Authorization("key", self._key)
        if self._entra is None:
            raise CredentialError("there is no credential")
        return Authorization("entra", await self._entra.get(timeout_s=timeout_s))

    def without_key(self) -> "Credentials | None":
        """The same without the key, for services that take Entra alone; None where there is no Entra."""
        return None if self._entra is None else Credentials(key=None, entra=self._entra)

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """The secrets in use: the key and the last Entra token."""
        held = (self._key, self._entra.last if self._entra else None)
        return tuple(secret for secret in held if secret is not None)

    def appear_in(self, text: str) -> bool:
        """Whether `text`, which came from outside, contains the key or the Entra token."""
        secrets = [secret.get_secret_value() for secret in self.secrets]
        return any(secret in text if len(secret) >= _MIN_SEARCHED_CHARS else secret == text for secret in secrets)

    def keys_refused(self) -> bool:
        """Azure answered that keys are off. True if Entra is used from now on, False if there is no Entra."""
        if self._entra is None:
            return False
        if not self._keys_off():
            log.warning(
                "keys_are_off", do="Azure refuses keys on this resource: Entra is used; unset AZURE_VOICELIVE_KEY"
            )
        self._keys_off_until_s = self._monotonic() + _KEYS_OFF_KEPT_S
        return True

    async def warm(self) -> None:
        """Fetches the first Entra token, if the first request would need one. Logs a failure and does not raise it."""
        if self._entra is not None and self._key is None:
            with contextlib.suppress(CredentialError):
                await self._entra.get(timeout_s=_KEYS_OFF_KEPT_S)

    async def aclose(self) -> None:
        """Ends what fetches tokens."""
        if self._entra is not None:
            await self._entra.aclose()

    def _keys_off(self) -> bool:
        return self._keys_off_until_s is not None and self._monotonic() < self._keys_off_until_s


class _AzureIdentity:
    """azure-identity's default chain. Created at the first fetch, because its import takes a large part of a second."""

    def __init__(self, scope: str, options: dict[str, Any]) -> None:
        self._scope = scope
        self._options = options
        self._credential: DefaultAzureCredential | None = None

    async def fetch(self) -> AccessToken:
        if self._credential is None:
            module = await asyncio.to_thread(importlib.import_module, "azure.identity.aio")
            self._credential = module.DefaultAzureCredential(**self._options)
        token = await self._credential.get_token(self._scope)
        return AccessToken(SecretStr(token.token), token.expires_on)

    async def aclose(self) -> None:
        if self._credential is not None:
            await self._credential.close()


def azure_identity_source(
    scope: str, *, client_id: str | None = None, authority: str | None = None, proxy: OutboundProxy | None = None
) -> TokenSource:
    """Tokens for `scope` from azure-identity's `DefaultAzureCredential`.

    `client_id` names a managed identity; `authority` is the base URL of another cloud's Entra, which is asked through
    `proxy` where that serves it.
    """
    # Not azure-identity's own reading of the environment: it knows only HTTPS_PROXY, and sends what is asked of the
    # machine's own identity endpoint, by plain http, to HTTP_PROXY.
    options: dict[str, Any] = {"use_env_settings": False}
    if client_id:
        options["managed_identity_client_id"] = client_id
    if authority:
        options["authority"] = authority
    if proxy is not None and proxy.serves(authority or cloud_of().authority):
        options["proxies"] = {"https": proxy.full_url.get_secret_value()}
    return _AzureIdentity(scope, options)
