"""The `openai` packages beside a WebRTC stack: they send its offer, and hang up."""

import pytest

from tests.clients.support.compat import CompatEndpoint
from tests.clients.support.offers import make_offer
from tests.clients.support.programs import ClientRunner
from tests.clients.support.setups import make_setup

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the compatible endpoints are the module's
by_package = pytest.mark.parametrize("program", ["openai_call_python", "openai_call.mjs"], ids=["python", "npm"])


@by_package
@pytest.mark.parametrize(
    ("compat", "with_session"),
    [("simulator", False), ("voice_live", False), ("voice_live", True)],
    ids=["raw at the simulator", "raw at the broker", "as a form at the broker"],
    indirect=["compat"],
)
async def test_offer_is_answered_and_call_hung_up(
    compat: CompatEndpoint, with_session: bool, program: str, clients: ClientRunner
) -> None:
    setup = make_setup(compat, await compat.mint(), offer=await make_offer(), withSession=with_session)
    report = await clients.run(program, setup)
    assert report["status"] == 201
    assert report["sdp"].startswith("v=0")
    await compat.azure.until_calls(0)
