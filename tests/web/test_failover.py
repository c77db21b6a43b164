"""Failover in a real browser: the fake fails in each way, and the talk goes on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser, Page
from tests.web.support.clock import HURRIED_MS, install_clock, pending_timers_ms, waited_s
from tests.web.support.fake_broker import DIRECT, PROXY, RELAY, FakeBroker, run_fake

KNOWN_AT_ONCE_S = 2.0
AFTER_A_WAIT_S = 8.0

_COUNT_MICROPHONES = """
(() => {
  window.__microphones = 0;
  const get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = (wish) => { window.__microphones += 1; return get(wish); };
})();
"""


@asynccontextmanager
async def _talk_page(
    browser: Browser, server: FakeBroker, *, hurried_ms: Sequence[int] = (), speed: float = 1
) -> AsyncIterator[Page]:
    async with browser.page() as page:
        await page.on_every_page(_COUNT_MICROPHONES)
        await install_clock(page, hurried_ms=hurried_ms, speed=speed)
        await page.goto(server.base_url)
        yield page


async def _live_within(page: Page, limit_s: float, transport: str, reason: str, *, since_s: float = 0) -> None:
    """The talk is live by `transport`, and the page has waited no longer than `limit_s` by its own clock."""
    live = "document.querySelector('[data-testid=state]').textContent === 'live'"
    used = f"document.querySelector('[data-testid=transport]').textContent === '{transport}'"
    await page.wait_for(f"{live} && {used}", 2 * AFTER_A_WAIT_S)
    assert await waited_s(page) - since_s <= limit_s
    assert await page.run("document.querySelector('[data-testid=transport]').dataset.reason") == reason


AT_ONCE, WAIT = KNOWN_AT_ONCE_S, AFTER_A_WAIT_S
SOCKET: dict[str, Any] = {"transports": (PROXY,)}
NOT_EPHEMERAL = "token_not_ephemeral"
FAULTS: dict[str, tuple[dict[str, Any], float, str, str]] = {
    # what fails: (how, how long the page may wait, what carries the talk, why)
    "sdp-401": ({"sdp_answers": [401]}, AT_ONCE, RELAY, "sdp_refused"),
    "sdp-500": ({"sdp_answers": [500]}, AT_ONCE, RELAY, "sdp_refused"),
    "sdp-nonsense": ({"sdp_answers": ["nonsense"]}, AT_ONCE, RELAY, "sdp_refused"),
    "sdp-hangs": ({"sdp_answers": ["hang"]}, WAIT, RELAY, "sdp_timeout"),
    "ice-blocked": ({"sdp_answers": ["blocked"]}, WAIT, PROXY, "ice_timeout"),
    "relay-502": ({"sdp_answers": [403], "relay_answers": [502]}, AT_ONCE, PROXY, "sdp_refused"),
    "token-expired": ({"webrtc_expires_in_s": 1}, AT_ONCE, RELAY, "token_expired"),
    "nothing-minted": (SOCKET, AT_ONCE, PROXY, "not_minted"),
    "broker-503": ({"token_answers": [503]}, AT_ONCE, DIRECT, "first_choice"),
    "ticket-spent": (SOCKET | {"socket_closes": [4401]}, AT_ONCE, PROXY, "ticket_spent"),
    "draining": (SOCKET | {"socket_closes": [4503]}, AT_ONCE, PROXY, "draining"),
    "azure-refuses": (SOCKET | {"socket_closes": [4502]}, AT_ONCE, PROXY, "azure_dropped"),
    "resource-key": ({"ephemeral_token": "0123456789abcdef0123456789abcdef"}, AT_ONCE, RELAY, NOT_EPHEMERAL),
    "openai-key": ({"ephemeral_token": "sk-secret"}, AT_ONCE, RELAY, NOT_EPHEMERAL),
    "entra-token": ({"ephemeral_token": "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJhIn0.c2ln"}, AT_ONCE, RELAY, NOT_EPHEMERAL),
}

_WHOLE = {"token_answers": [], "sdp_answers": [], "relay_answers": [], "socket_closes": []} | {
    "transports": (DIRECT, RELAY, PROXY), "ephemeral_token": "ek_fake", "webrtc_expires_in_s": 59
}  # fmt: skip


def _break(server: FakeBroker, faults: Mapping[str, Any]) -> None:
    """From now on the fake has these faults and no others."""
    for name, value in {**_WHOLE, **faults}.items():
        setattr(server, name, list(value) if isinstance(value, list) else value)


@retry_if_host_busy(tries=3)
async def _goes_on(page: Page, server: FakeBroker, name: str) -> None:
    """A talk of this page's goes on where the fault leads to, and ends."""
    faults, limit_s, transport, reason = FAULTS[name]
    await page.run("document.querySelector('[data-testid=hangup]:not([hidden])')?.click()")  # a talk of a try before
    _break(server, faults)
    offers, calls, since_s = len(server.sdp_offers), len(server.calls), await waited_s(page)
    hurried = ", ".join(map(str, HURRIED_MS.get(reason, [])))
    await page.run(f"window.__microphones = 0, window.__codes = [], __clock.hurried.push({hurried})")
    await page.click("talk")
    await _live_within(page, limit_s, transport, reason, since_s=since_s)
    assert await page.run("__microphones") == 1
    if name == "ice-blocked":
        assert len(server.sdp_offers) == offers + 1  # the relay's media would take the same path
    if name == "token-expired":
        assert [call.partner.from_client for call in server.calls[calls:]] == [[]]  # one call, the relay's
    if reason == NOT_EPHEMERAL:
        assert NOT_EPHEMERAL in await page.run("__codes")
        assert not any(faults["ephemeral_token"] in str(request) for request in page.requests)
    await page.click("hangup")
    await page.wait_for_text("state", "ended")


async def test_fault_leads_to_next_connection(quiet_browser: Browser) -> None:
    async with run_fake() as server, _talk_page(quiet_browser, server) as page:
        await page.run(
            "new MutationObserver(() => __codes.push(document.getElementById('notice').dataset.code))"
            ".observe(document.getElementById('notice'), { attributes: true })"
        )
        for name in FAULTS:
            await _goes_on(page, server, name)


async def _drop_channel(server: FakeBroker) -> None:
    await server.calls[-1].close_channel()


async def _drop_call(server: FakeBroker) -> None:
    await server.calls[-1].close()


async def _azure_drops(server: FakeBroker) -> None:
    await server.sockets[-1].close(4502)


async def _longest_time(server: FakeBroker) -> None:
    await server.sockets[-1].close(1000)


async def _broker_goes(server: FakeBroker) -> None:
    server.token_answers += [503, 503]
    await server.sockets[-1].close(1012)


@dataclass(frozen=True)
class _Break:
    """How a talk breaks off, and how it goes on."""

    transports: tuple[str, ...]
    drop: Callable[[FakeBroker], Awaitable[None]]
    limit_s: float
    reason: str


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(_Break((DIRECT, RELAY, PROXY), _drop_channel, AT_ONCE, "channel_closed"), id="data-channel"),
        pytest.param(_Break((DIRECT, RELAY, PROXY), _drop_call, WAIT, "channel_closed"), id="whole-call"),
        pytest.param(_Break((PROXY,), _azure_drops, AT_ONCE, "azure_dropped"), id="proxys-azure"),
        pytest.param(_Break((PROXY,), _longest_time, AT_ONCE, "session_limit"), id="longest-time"),
        pytest.param(_Break((PROXY,), _broker_goes, WAIT, "socket_closed"), id="broker-restarts"),
    ],
)
@retry_if_host_busy(tries=3)
async def test_broken_talk_resumes_its_session(quiet_browser: Browser, broken: _Break) -> None:
    transports = broken.transports
    async with run_fake(transports=transports) as server, _talk_page(quiet_browser, server) as page:
        await page.run("window.__sameDocument = true")
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.type("text", "Before")
        await page.press("Enter")
        await page.wait_for("document.querySelector('.line[data-speaker=assistant][data-final=true]')")
        before_s = await waited_s(page)
        await broken.drop(server)
        await page.wait_for("document.querySelector('[data-testid=state]').textContent !== 'live'", 6)
        await _live_within(page, broken.limit_s, PROXY, broken.reason, since_s=before_s)
        assert server.plan_requests[-1]["session_id"] == server.plans[0]["session_id"]
        assert server.plan_requests[-1]["session_token"] == server.plans[0]["session_token"]
        assert await page.run("[window.__sameDocument, __microphones]") == [True, 1]
        await page.type("text", "After")
        await page.press("Enter")
        await page.wait_for("document.querySelectorAll('.line[data-speaker=assistant][data-final=true]').length === 2")
        if transports[0] == DIRECT:
            assert [turn["content"] for turn in server.turns] == ["Before", "You wrote to me."]


@retry_if_host_busy(tries=3)
async def test_turns_keep_the_token_of_their_plan(quiet_browser: Browser) -> None:
    async with (
        run_fake(transports=(DIRECT,), turn_answers=[503] * 4) as server,
        _talk_page(quiet_browser, server) as page,
    ):
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.type("text", "Before")
        await page.press("Enter")
        await server.until(lambda: len(server.turn_answers) < 4)
        await server.calls[-1].close_channel()
        await server.until(lambda: bool(server.turns))
        assert len(server.plans) == 2
        assert server.turns[0]["authorization"] == f"Bearer {server.plans[0]['session_token']}"


@retry_if_host_busy(tries=3)
async def test_partial_words_reach_the_memory(quiet_browser: Browser) -> None:
    async with run_fake(transports=(DIRECT,)) as server, _talk_page(quiet_browser, server) as page:
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await server.calls[-1].until_channel()
        await server.partners[-1].begin_to_say("And furthermore")
        await page.wait_for(
            "document.querySelector('.line[data-final=false] .words')?.textContent.includes('furthermore')"
        )
        await server.calls[-1].close_channel()
        await server.until(lambda: bool(server.enriched))
        assert [(said["speaker"], said["text"].strip()) for said in server.enriched] == [
            ("assistant", "And furthermore")
        ]


REFUSALS: dict[str, dict[str, Any]] = {
    "fake_404": {"token_answers": [404]},
    "sign_in_required": {"token_answers": [401]},
    "fake_403": {"token_answers": [403]},
    "origin_refused": SOCKET | {"socket_closes": [4403]},
    "too_many_sessions": SOCKET | {"socket_closes": [4429]},
    "bad_request": SOCKET | {"socket_closes": [4400]},
}


@retry_if_host_busy(tries=3)
async def test_final_refusal_ends_the_attempts(quiet_browser: Browser) -> None:
    async with run_fake() as server, _talk_page(quiet_browser, server) as page:
        for code, faults in REFUSALS.items():
            _break(server, faults)
            asked = len(server.plan_requests)
            await page.click("talk")
            await server.until(lambda asked=asked: len(server.plan_requests) > asked)  # type: ignore[misc]
            await page.wait_for_text("state", "failed")
            notice = await page.run(
                "(({ dataset, textContent, hidden }) => [dataset.code, dataset.kind, hidden, textContent])"
                "(document.getElementById('notice'))"
            )
            assert notice[:3] == [code, "fatal", False]
            assert len(notice[3]) > 20
            assert len(server.plan_requests) == asked + 1
        await page.click("talk")  # and Talk begins anew
        await page.wait_for_text("state", "live")


@retry_if_host_busy(tries=3)
async def test_absent_broker_fails_after_four_attempts(quiet_browser: Browser) -> None:
    async with run_fake(token_answers=[500] * 20) as server, _talk_page(quiet_browser, server, speed=10) as page:
        await page.click("talk")
        await page.wait_for_text("state", "failed", 12)
        assert len(server.plan_requests) == 4


@retry_if_host_busy(tries=3)
async def test_page_waits_for_azure_and_resumes(quiet_browser: Browser) -> None:
    async with (
        run_fake(transports=(PROXY,), token_answers=["poor", "poor"]) as server,
        _talk_page(quiet_browser, server) as page,
    ):
        await page.click("talk")
        await page.wait_for("document.getElementById('notice').dataset.code === 'azure_unavailable'")
        assert await page.text("state") == "requesting"
        assert "Azure is not reachable now; we try again in" in await page.text("notice")
        assert server.sockets == []
        await page.wait_for_text("state", "live")
        assert len(server.plan_requests) == 3
        assert server.plan_requests[1]["session_token"] == server.plans[0]["session_token"]
        assert await page.text("resource") == "eastus2"
        await server.partners[0].begin_to_say("Once upon")
        (socket,) = server.sockets
        await socket.send_json({"type": "broker.resuming", "reason": "lost"})
        await page.wait_for("document.getElementById('notice').dataset.code === 'resuming_lost'")
        await page.wait_for("document.querySelector('.line').dataset.interrupted === 'true'")
        resumed = {"resource": "swedencentral", "upstream": "openai_realtime", "dialect": "ga"}
        await socket.send_json({"type": "broker.resumed", **resumed})
        await page.wait_for_text("resource", "swedencentral")
        assert await page.text("state") == "live"
        assert await page.run("document.getElementById('notice').hidden")
        await page.type("text", "Go on")
        await page.press("Enter")
        await server.partners[0].wait_for("response.create")
        assert (len(server.plans), len(server.sockets)) == (3, 1)


@retry_if_host_busy(tries=3)
async def test_hang_up_while_connecting_ends_all(quiet_browser: Browser) -> None:
    async with run_fake(sdp_answers=["hang"]) as server, _talk_page(quiet_browser, server) as page:
        await page.click("talk")
        await server.until(lambda: len(server.sdp_offers) == 1)
        await page.click("hangup")
        await page.wait_for_text("state", "ended")
        assert await pending_timers_ms(page) == []
        await asyncio.sleep(0.5)  # for an answer that might still be on its way
        assert await page.text("state") == "ended"
        assert (len(server.plans), len(server.sdp_offers)) == (1, 1)


@retry_if_host_busy(tries=3)
async def test_session_moves_before_azures_limit(quiet_browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, _talk_page(quiet_browser, server) as page:
        await page.run(
            """import("/client/voice-session.js").then(({ VoiceSession }) => {
                window.session = new VoiceSession({ brokerUrl: location.origin, moveAfterMs: 1000 });
                window.reasons = [];
                session.addEventListener("transport", ({ detail }) => reasons.push(detail.reason));
            })"""
        )
        await page.run("session.connect()", user_gesture=True)
        await page.wait_for("session.state === 'live' && reasons.includes('session_limit')")
        assert server.plan_requests[1]["session_id"] == server.plans[0]["session_id"]
        await page.run("session.disconnect()")


@retry_if_host_busy(tries=3)
async def test_agent_switch_by_plan_or_event(quiet_browser: Browser) -> None:
    for transport in (DIRECT, PROXY):
        async with run_fake(transports=(transport,)) as server, _talk_page(quiet_browser, server) as page:
            await page.wait_for("document.querySelector('[data-testid=agent]').options.length === 2")
            await page.click("talk")
            await page.wait_for_text("state", "live")
            await page.run(
                "(() => { const agent = document.querySelector('[data-testid=agent]'); agent.value = 'marcus';"
                "agent.dispatchEvent(new Event('change')); })()"
            )
            if transport == DIRECT:
                await server.until(lambda server=server: len(server.plans) == 2)  # type: ignore[misc]
                assert server.plan_requests[1]["agent_id"] == "marcus"
                # Until there is a plan the talk goes on with the agent before.
                await page.wait_for(
                    "document.querySelector('[data-testid=transport]').dataset.reason === 'agent_switched'"
                )
                await _live_within(page, KNOWN_AT_ONCE_S, DIRECT, "agent_switched")
            else:
                await server.partners[0].wait_for("broker.agent.switch")
                assert len(server.plans) == 1
            await page.type("text", "Hello")
            await page.press("Enter")
            await page.wait_for(
                "document.querySelector('.line[data-speaker=assistant] .who')?.textContent === 'Marcus'"
            )


@retry_if_host_busy(tries=3)
async def test_hang_up_ends_relayed_call_at_azure(quiet_browser: Browser) -> None:
    async with run_fake(transports=(RELAY,)) as server, _talk_page(quiet_browser, server) as page:
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.click("hangup")
        await server.until(lambda: server.hang_ups == 1)
