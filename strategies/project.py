"""The first version's route of a Foundry project, and the nested one that Microsoft implies (docs/azure.md §2.4)."""

import time
from urllib.parse import quote

from strategies.base import EphemeralGrant, SessionSpec
from strategies.credentials import Authorization
from strategies.endpoint import Target
from strategies.errors import ApiVersionError
from strategies.flat import FlatRoute
from strategies.session_body import ga_client_secret
from strategies.upstream import Upstream

__all__ = ["Project"]


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
