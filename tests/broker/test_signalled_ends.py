"""How calls that the broker signals end: through the whole broker, against a simulated resource."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import select

from tests.conftest import StartBroker
from tests.support.broker import RunningBroker
from tests.support.machine import retry_if_host_busy
from tests.support.signalling import SignallingPage, signalling_page
from tests.support.waiting import eventually
from token_broker.memory.maintenance import open_maintenance
from token_broker.memory.store.tables import TURN_ORDER, turns
from token_broker.relay.media.media_talk import MediaTalk
from token_broker.security.tokens import ANONYMOUS, Narrowing, Owner
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

CONTROL = "/voice-live/realtime/calls"
SESSION = "session-of-a-signalled-call"


@dataclass(frozen=True)
class Running:
    """A call, and both sides of it."""

    broker: RunningBroker
    azure: RunningSimulator
    page: SignallingPage

    @property
    def talk(self) -> MediaTalk:
        (talk,) = self.broker.relay._talks
        assert isinstance(talk, MediaTalk)
        return talk


Act = Callable[[Running], Awaitable[None]]


async def nothing(_running: Running) -> None:
    """It ends by itself."""


async def block(running: Running) -> None:
    async with open_maintenance(running.broker.settings) as admin:
        await admin.block("principal", ANONYMOUS)
    await running.broker.memory.blocklist.refresh()


async def drain(running: Running) -> None:
    await running.broker.drain.finish(0.1)


async def reload(running: Running) -> None:
    await running.page.socket.close(1001)


def grow_old(seconds: float) -> Act:
    """So much time has passed since the talk began."""

    async def act(running: Running) -> None:
        running.talk._watchdog._began_s -= seconds

    return act


async def fall_silent(running: Running) -> None:
    running.talk._watchdog._idle_s = 0.2


async def cut(running: Running) -> None:
    running.azure.set_faults({"match": CONTROL, "fault": "cut", "at": "now"})


async def silence(running: Running) -> None:
    running.azure.set_faults({"match": CONTROL, "fault": "silence", "at": "now", "pongs": False})


@dataclass(frozen=True)
class End:
    """The page's close code, the usage's word for it, what the page was told, and how the call comes to it."""

    code: int
    ended: str
    told: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    longest_s: int | None = None
    faults: tuple[dict[str, Any], ...] = ()
    act: Act = nothing


ENDS = {
    "max_session_s": End(
        1000, "longest_time", settings={"voice_live_webrtc_ends": "on"}, longest_s=600, act=grow_old(600)
    ),
    "max_talk_s": End(1000, "longest_time", settings={"max_talk_s": 900}, act=grow_old(900)),
    "idle": End(1000, "idle", act=fall_silent),
    "budget": End(1000, "budget", ("budget_used",), {"budget_tokens_per_day": 20, "unseen_talks": "allow"}),
    "expiry": End(
        4502, "lost", ("session_expiring",), faults=({"match": CONTROL, "fault": "session_expires", "seconds": 4},)
    ),
    "lost": End(4502, "lost", act=cut),
    "silent": End(4502, "lost", settings={"ping_interval_s": 1}, act=silence),
    "block": End(4401, "blocked", act=block),
    "drain": End(4503, "drain", act=drain),
    "reload": End(1001, "lost", act=reload),
}


@pytest.fixture
async def unified() -> AsyncIterator[RunningSimulator]:
    async with serve(SimulatorConfig(ice_addresses=("127.0.0.1",))) as azure:
        yield azure


async def stored(broker: RunningBroker) -> list[tuple[str, bool]]:
    """Role and interruption of the turns that are stored, in the conversation's order."""
    wanted = select(turns.c.role, turns.c.interrupted).order_by(*TURN_ORDER)
    return await broker.memory.database.read(lambda connection: [tuple(row) for row in connection.execute(wanted)])


@pytest.mark.parametrize("name", ENDS)
@retry_if_host_busy(tries=3)  # a session that expires may do so before it was asked anything
async def test_call_ends_as_on_the_proxy(name: str, unified: RunningSimulator, start_broker: StartBroker) -> None:
    end = ENDS[name]
    unified.set_faults(*end.faults)
    broker = await start_broker(unified, voice_live_webrtc="on", **end.settings)
    owner = Owner(SESSION, ANONYMOUS, time.time_ns() // 1_000_000, narrowed=Narrowing(max_session_s=end.longest_s))
    ticket = broker.signer.ticket(owner, agent_id="elena", ttl_s=60)
    mine = {"Authorization": f"Bearer {broker.signer.session_token(owner, ttl_s=60, agent_id='elena')}"}
    url = f"ws{broker.base_url.removeprefix('http')}/api/v1/voice/voicelive/{SESSION}?media=webrtc"
    async with signalling_page(url, ["realtime", f"ticket.{ticket}"]) as page:
        await page.until("broker.ready")
        assert (broker.talks.active, unified.calls) == (1, 1)
        await page.ask()
        await end.act(Running(broker, unified, page))
        assert await page.closed() == end.code
    await unified.until_calls(0)

    async def is_over() -> bool:
        return not broker.talks.active and not broker.relay.active and len(await stored(broker)) == 2

    await eventually(is_over)
    assert set(end.told) <= set(page.told)
    assert await stored(broker) == [("user", False), ("assistant", False)]

    used: dict[str, Any] = {}

    async def is_written() -> bool:
        for each in (await broker.client.get("/api/v1/usage", headers=mine)).json()["usage"]:
            used.update(each)
        return bool(used.get("end"))

    if name != "block":
        await eventually(is_written)
        assert used["end"] == end.ended
        assert (used["transport"], used["seen"], used["complete"]) == ("webrtc_websocket", True, False)
        assert (used["responses"], used["unmeasured"]) == (1, 1)
        assert (used["input_tokens"], used["output_tokens"], used["output_audio_tokens"]) == (None, None, None)
        assert used["seconds"] > 0
