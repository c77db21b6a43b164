"""The first version's route on a unified endpoint (docs/azure.md §2.3)."""

from strategies.base import EphemeralGrant, SessionSpec
from strategies.endpoint import Target
from strategies.flat import FlatRoute
from strategies.upstream import Upstream

__all__ = ["Unified"]


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
