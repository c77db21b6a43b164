"""The first version's route on a direct endpoint, with the deployment in its path (docs/azure.md §2.3)."""

from urllib.parse import quote

from strategies.base import EphemeralGrant, SessionSpec
from strategies.endpoint import Target
from strategies.flat import FlatRoute
from strategies.upstream import Upstream

__all__ = ["DirectDeployment"]


class DirectDeployment:
    """`POST {direct}/openai/deployments/{model}/realtime/client_secrets?api-version=…`, flat body."""

    name = "direct_deployment"

    def __init__(self, target: Target, upstream: Upstream, *, model: str, api_version: str) -> None:
        self._base = target.openai_base
        url = f"{self._base}/openai/deployments/{quote(model, safe='')}/realtime/client_secrets"
        self._route = FlatRoute(url, upstream, api_version=api_version)

    @staticmethod
    def applies(target: Target) -> bool:
        """True for every endpoint: each has a base for OpenAI's routes."""
        return bool(target.openai_base)

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> EphemeralGrant:
        minted = await self._route.mint(spec, timeout_s=timeout_s)
        return minted.grant(self.name, endpoint=self._base, dialect="preview", spec=spec)
