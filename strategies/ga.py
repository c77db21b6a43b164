"""GA's mint, which Microsoft documents (docs/azure.md §2.1)."""

from strategies.base import EphemeralGrant, SessionSpec
from strategies.endpoint import Target
from strategies.session_body import ga_client_secret
from strategies.upstream import Upstream

__all__ = ["Ga"]


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
