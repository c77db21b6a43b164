"""The first version's routes: a flat body and an api-version, and a second one if the resource refuses the first."""

import time
from collections.abc import Callable, Mapping

from strategies.base import SessionSpec
from strategies.credentials import Authorization
from strategies.errors import ApiVersionError
from strategies.session_body import flat_session
from strategies.upstream import Minted, Upstream

__all__ = ["LEGACY_API_VERSION", "FlatRoute"]

LEGACY_API_VERSION = "2024-10-01-preview"


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

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> Minted:
        """Mints within `timeout_s`, with both api-versions if the first is refused. Raises MintError."""
        deadline_s = time.monotonic() + timeout_s
        for version in tuple(self._versions):
            try:
                minted = await self._upstream.mint(
                    f"{self._url}?api-version={version}",
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
