"""The strategies that mint: one a route of Azure's (docs/azure.md §2).

GA's route has a nested body. The first version's routes take a flat body and an api-version, and a second version where
the resource refuses the first.
"""

import time
from collections.abc import Callable, Mapping
from urllib.parse import quote

from strategies.base import EphemeralGrant, SessionSpec
from strategies.credentials import Authorization
from strategies.endpoint import Target
from strategies.errors import ApiVersionError
from strategies.session_model.session_fields import flat_session, ga_client_secret
from strategies.upstream import Minted, Upstream

__all__ = ["LEGACY_API_VERSION", "DirectDeployment", "FlatRoute", "Ga", "Project", "Unified"]

LEGACY_API_VERSION = "2024-10-01-preview"


class Ga:
    """`POST {direct}/openai/v1/realtime/client_secrets`: nested body, no api-version, no beta header."""

    name = "ga"

    def __init__(self, target: Target, upstream: Upstream) -> None:
        self._base = target.openai_base
        self._upstream = upstream

    @staticmethod
    def applies(target: Target) -> bool:
        """True for every endpoint: each has a base for OpenAI's routes."""
        return bool(target.openai_base)

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> EphemeralGrant:
        url = f"{self._base}/openai/v1/realtime/client_secrets"
        minted = await self._upstream.mint(url, ga_client_secret(spec), timeout_s=timeout_s)
        return minted.grant(self.name, endpoint=self._base, dialect="ga", spec=spec)


class FlatRoute:
    """One flat mint route. It remembers which api-version was accepted, and asks with that one first."""

    def __init__(
        self,
        url: str,
        upstream: Upstream,
        *,
        api_version: str,
        headers: Callable[[Authorization], Mapping[str, str]] = Authorization.headers,
    ) -> None:
        self._url = url
        self._upstream = upstream
        self._versions = list(dict.fromkeys((api_version, LEGACY_API_VERSION)))
        self._headers = headers

    async def mint(self, spec: SessionSpec, *, timeout_s: float, url: str = "") -> Minted:
        """Mints within `timeout_s`, with both api-versions if the first is refused. Raises MintError.

        `url` is for a route whose URL depends on the session.
        """
        deadline_s = time.monotonic() + timeout_s
        for version in tuple(self._versions):
            try:
                minted = await self._upstream.mint(
                    f"{url or self._url}?api-version={version}",
                    flat_session(spec),
                    timeout_s=deadline_s - time.monotonic(),
                    headers=self._headers,
                )
            except ApiVersionError as error:
                refused = error
            else:
                self._versions.sort(key=lambda known: known != version)
                return minted
        raise refused


class DirectDeployment:
    """`POST {direct}/openai/deployments/{model}/realtime/client_secrets?api-version=…`, flat body."""

    name = "direct_deployment"

    def __init__(self, target: Target, upstream: Upstream, *, api_version: str) -> None:
        self._base = target.openai_base
        self._route = FlatRoute(f"{self._base}/openai/deployments", upstream, api_version=api_version)

    @staticmethod
    def applies(target: Target) -> bool:
        """True for every endpoint: each has a base for OpenAI's routes."""
        return bool(target.openai_base)

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> EphemeralGrant:
        # An agent may have another deployment than the resource's own.
        url = f"{self._base}/openai/deployments/{quote(spec.model, safe='')}/realtime/client_secrets"
        minted = await self._route.mint(spec, timeout_s=timeout_s, url=url)
        return minted.grant(self.name, endpoint=self._base, dialect="preview", spec=spec)


class Unified:
    """`POST {unified}/openai/realtime/client_secrets?api-version=…`, flat body."""

    name = "unified"

    def __init__(self, target: Target, upstream: Upstream, *, api_version: str) -> None:
        self._base = target.base
        self._route = FlatRoute(f"{self._base}/openai/realtime/client_secrets", upstream, api_version=api_version)

    @staticmethod
    def applies(target: Target) -> bool:
        """False for a direct endpoint, which has no such route."""
        return target.unified_base is not None

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> EphemeralGrant:
        minted = await self._route.mint(spec, timeout_s=timeout_s)
        return minted.grant(self.name, endpoint=self._base, dialect="preview", spec=spec)


class Project:
    """`POST {unified}/api/projects/{project}/openai/realtime/client_secrets?api-version=…`, flat, both key headers.

    Where every api-version is refused, `…/openai/v1/realtime/client_secrets` is tried with GA's body. If that succeeds,
    it is asked first from then on.
    """

    name = "project"

    def __init__(self, target: Target, upstream: Upstream, *, api_version: str) -> None:
        self._base = target.base
        self._upstream = upstream
        root = f"{self._base}/api/projects/{quote(target.project or '', safe='')}/openai"
        self._flat = FlatRoute(
            f"{root}/realtime/client_secrets", upstream, api_version=api_version, headers=_both_key_headers
        )
        self._nested_url = f"{root}/v1/realtime/client_secrets"
        self._nested_works = False

    @staticmethod
    def applies(target: Target) -> bool:
        """Whether a project is configured and the endpoint can have projects."""
        return target.unified_base is not None and target.project is not None

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> EphemeralGrant:
        if self._nested_works:
            return await self._mint_nested(spec, timeout_s=timeout_s)
        deadline_s = time.monotonic() + timeout_s
        try:
            minted = await self._flat.mint(spec, timeout_s=timeout_s)
        except ApiVersionError:
            return await self._mint_nested(spec, timeout_s=deadline_s - time.monotonic())
        return minted.grant(self.name, endpoint=self._base, dialect="preview", spec=spec)

    async def _mint_nested(self, spec: SessionSpec, *, timeout_s: float) -> EphemeralGrant:
        self._nested_works = False  # until this attempt succeeds, too: a failure goes back to the flat route
        minted = await self._upstream.mint(
            self._nested_url, ga_client_secret(spec), timeout_s=timeout_s, headers=_both_key_headers
        )
        self._nested_works = True
        return minted.grant(self.name, endpoint=self._base, dialect="ga", spec=spec)


def _both_key_headers(authorization: Authorization) -> dict[str, str]:
    headers = authorization.headers()
    if (key := headers.get("api-key")) is not None:
        # Both, as the first version sent them: which of the two this route reads is documented nowhere.
        headers["Ocp-Apim-Subscription-Key"] = key
    return headers
