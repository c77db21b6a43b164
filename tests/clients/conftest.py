"""An authority that the clients trust, the clients, and the compatible endpoints that they connect to."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import trustme

from tests.clients.support.compat import COMPAT_ENDPOINTS, CompatEndpoint, open_compat
from tests.clients.support.programs import ClientRunner, run_clients


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def authority_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("clients") / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(scope="session")
def clients(authority_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientRunner]:
    with run_clients(authority_file, tmp_path_factory.mktemp("programs")) as runner:
        yield runner


@pytest_asyncio.fixture(params=COMPAT_ENDPOINTS, scope="module", loop_scope="module")
async def compat(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA
) -> AsyncIterator[CompatEndpoint]:
    """Each compatible endpoint, for all tests of a module; they run in the module's event loop."""
    async with open_compat(request.param, tmp_path_factory.mktemp("compat"), authority) as opened:
        yield opened
