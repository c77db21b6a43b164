"""An authority that the clients trust, and the compatible endpoints that they are pointed at."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from tests.clients.support.compat import COMPAT_ENDPOINTS, CompatEndpoint, open_compat


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def authority_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("clients") / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(params=COMPAT_ENDPOINTS)
async def compat(
    request: pytest.FixtureRequest, tmp_path: Path, authority: trustme.CA
) -> AsyncIterator[CompatEndpoint]:
    async with open_compat(request.param, tmp_path, authority) as opened:
        yield opened
