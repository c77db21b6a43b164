"""A platform in front of the broker puts its own Bearer into Authorization: the session token has a header besides."""

from pathlib import Path
from typing import Any

import pytest

from tests.compat.conftest import CompatBroker
from tests.compat.test_calls import calling_compat_endpoints
from tests.simulator.phone import Phone
from tests.simulator.support import silence

PLATFORM = {"Authorization": "Bearer eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJhIHBsYXRmb3JtIn0.c2lnbmVk"}
SDP = {"Content-Type": "application/sdp"}


async def statuses(compat: CompatBroker, session_id: str, headers: dict[str, str]) -> dict[str, int]:
    """What each route that takes a session token answers with these headers."""
    found = {}
    phone = Phone(silence(0.1))
    sdp = await phone.offer()

    async def ask(name: str, method: str, path: str, **options: Any) -> str:
        options["headers"] = headers | options.get("headers", {})
        response = await compat.running.client.request(method, path, **options)
        found[name] = response.status_code
        location: str = response.headers.get("location", f"{path}/none")
        return location

    said = {"session_id": session_id, "agent_id": "elena", "role": "user", "content": "hello"}
    await ask("turn", "POST", "/conversation/turn", json=said)
    await ask("enrich", "POST", "/memory/enrich", json={"session_id": session_id, "text": "hi", "speaker": "user"})
    await ask("read", "GET", f"/api/v1/memory/sessions/{session_id}/turns")
    call = await ask("call", "POST", "/realtime/calls", content=sdp, headers=SDP)
    await ask("hang up", "DELETE", call)
    call = await ask("compatible call", "POST", "/v1/realtime/calls", content=sdp, headers=SDP)
    await ask("compatible hang-up", "POST", f"{call}/hangup")
    await ask("erase", "DELETE", f"/api/v1/memory/sessions/{session_id}/turns")
    await phone.hang_up()
    return found


TAKEN = {
    "turn": 200,
    "enrich": 202,
    "read": 200,
    "call": 201,
    "hang up": 204,
    "compatible call": 201,
    "compatible hang-up": 200,
    "erase": 200,
}


@pytest.mark.parametrize("form", ["{}", "Bearer {}"])
async def test_session_token_has_its_own_header(tmp_path: Path, form: str) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        plan = await compat.running.plan()
        headers = PLATFORM | {"X-Session-Token": form.format(plan["session_token"])}
        assert await statuses(compat, plan["session_id"], headers) == TAKEN


async def test_brokers_own_bearer_counts_first(tmp_path: Path) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        plan, other = await compat.running.plan(), await compat.running.plan()
        headers = {"Authorization": f"Bearer {plan['session_token']}", "X-Session-Token": other["session_token"]}
        assert await statuses(compat, plan["session_id"], headers) == TAKEN


async def test_header_opens_no_other_session(tmp_path: Path) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        plan, other = await compat.running.plan(), await compat.running.plan()
        foreign = await statuses(compat, plan["session_id"], PLATFORM | {"X-Session-Token": other["session_token"]})
        assert {name: foreign[name] for name in ("turn", "enrich", "read", "erase")} == dict.fromkeys(
            ("turn", "enrich", "read", "erase"), 403
        )
        nothing = await statuses(compat, plan["session_id"], PLATFORM | {"X-Session-Token": "nonsense"})
        assert set(nothing.values()) == {401}


async def test_socket_takes_the_header_too(tmp_path: Path) -> None:
    async with calling_compat_endpoints(tmp_path) as compat:
        plan = await compat.running.plan()
        headers = PLATFORM | {"X-Session-Token": plan["session_token"]}
        async with compat.connect(additional_headers=headers) as caller:
            await caller.hear("session.created")
