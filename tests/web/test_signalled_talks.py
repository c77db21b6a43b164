"""A whole talk by Voice Live's WebRTC in the demo page: in two engines, and with two Azures that share no code."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartBroker
from tests.hooks.support import SECRET
from tests.support.agents import write_agents
from tests.support.broker import RunningBroker
from tests.support.machine import retry_if_host_busy
from tests.support.tool_server import ToolServer, run_tool_server
from tests.support.waiting import eventually
from tests.web.support.other_azure import OtherAzure, run_other_azure
from tests.web.support.page import KEEP_PLANS, ScriptPage, find
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

CONTROL = "/voice-live/realtime/calls"
TOOL = ("order_status", {"number": "7"})
AGENTS = """
default = "elena"
[agents.elena]
name = "Elena"
voices = {{ ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }}
instructions = "You are Elena."
[[agents.elena.tools]]
type = "function"
name = "order_status"
description = "Looks an order up."
parameters = {{ type = "object", properties = {{ number = {{ type = "string" }} }}, required = ["number"] }}
run = {{ url = "{url}", timeout_s = 8 }}
[agents.marcus]
name = "Marcus"
inherits = "elena"
voices = {{ ga = "cedar", preview = "en-US-AndrewNeural" }}
instructions = "You are Marcus."
"""
# The page's microphone is a sound that the test makes: the same in every engine.
PREPARE = """(() => {
  let context, ear;
  const capture = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    window.held = await capture(wanted); // a page that hears may be heard: Firefox begins no sound before
    context ??= new AudioContext();
    await context.resume();
    ear = context.createMediaStreamDestination();
    const silence = new ConstantSourceNode(context, { offset: 0 }); // without a source there is no sound at all
    silence.connect(ear);
    silence.start();
    return ear.stream;
  };
  window.say = (seconds) => new Promise((done) => {
    const voice = new OscillatorNode(context, { type: "square", frequency: 200 });
    voice.connect(new GainNode(context, { gain: 0.4 })).connect(ear);
    voice.onended = () => done(true);
    voice.start();
    voice.stop(context.currentTime + seconds);
  });
  window.type = (words) => {
    document.getElementById("text").value = words;
    document.getElementById("composer").requestSubmit();
  };
  window.lines = (speaker) => [...document.querySelectorAll(`.line[data-speaker=${speaker}]`)];
  window.said = (speaker) => lines(speaker).filter((line) => line.dataset.final === "true")
    .map((line) => line.querySelector(".words").textContent);
  window.live = () => document.body.dataset.state === "live" && document.getElementById("transport").textContent;
  window.reason = () => document.getElementById("transport").dataset.reason;
  return true;
})()"""


class Simulated:
    """The simulator, as the walk moves it."""

    def __init__(self, azure: RunningSimulator) -> None:
        self._azure = azure
        self.url = azure.base_url

    def call_next(self, name: str, arguments: dict[str, Any]) -> None:
        self._azure.script_responses({"calls": [{"name": name, "arguments": arguments}]})

    async def speak_long(self, page: ScriptPage) -> None:
        self._azure.script_responses({"say": "word " * 60})
        await page.run("type('Tell me a story')")

    async def lose_control(self, page: ScriptPage) -> None:
        self._azure.set_faults({"match": CONTROL, "fault": "cut", "at": "now"})
        await page.wait_for("document.body.dataset.state !== 'live'", 30)
        self._azure.set_faults()

    async def calls(self) -> int:
        return self._azure.calls


class Other:
    """The other Azure, as the walk moves it."""

    def __init__(self, azure: OtherAzure) -> None:
        self._azure = azure
        self.url = azure.base_url

    def call_next(self, name: str, arguments: dict[str, Any]) -> None:
        self._azure.function = (name, json.dumps(arguments))

    async def speak_long(self, page: ScriptPage) -> None:
        await self._azure.partners[-1].answer_with_tone(20, finished=False)

    async def lose_control(self, page: ScriptPage) -> None:
        await self._azure.sockets[-1].close(1011)

    async def calls(self) -> int:
        return self._azure.open


@dataclass
class Stage:
    """All but the page."""

    azure: Simulated | Other
    broker: RunningBroker
    tools: ToolServer


@asynccontextmanager
async def stage(kind: str, start_broker: StartBroker, folder: Path) -> AsyncIterator[Stage]:
    async with run_tool_server() as tools:
        agents = write_agents(folder, AGENTS.format(url=tools.url("ok")))

        async def begin(azure: Simulated | Other) -> Stage:
            broker = await start_broker(
                azure.url, agents_file=agents, tools_secret=SECRET, voice_live_webrtc="on",
                token_strategies=("voice_live_webrtc", "websocket_proxy"),
            )  # fmt: skip
            return Stage(azure, broker, tools)

        if kind == "simulator":
            async with serve(SimulatorConfig(kinds=frozenset({"unified"}))) as simulator:
                yield await begin(Simulated(simulator))
        else:
            async with run_other_azure() as other:
                yield await begin(Other(other))


@pytest.mark.parametrize("kind", ["simulator", "other"])
@pytest.mark.parametrize("engine", ["chromium", "firefox"])
@retry_if_host_busy(tries=3)
async def test_whole_talk(
    engine: str, kind: str, engine_page: ScriptPage, start_broker: StartBroker, tmp_path: Path
) -> None:
    page = engine_page
    async with stage(kind, start_broker, tmp_path) as on:

        async def answered(words: str) -> None:
            before = await page.run("said('assistant').length")
            await page.run(f"type('{words}')")
            await page.wait_for(f"said('user').includes('{words}') && said('assistant').length > {before}", 30)

        await page.goto(on.broker.base_url)
        await page.run(KEEP_PLANS)
        await page.run(PREPARE)
        await page.run(f"{find('talk')}.click()", user_gesture=True)
        await page.wait_for("live()", 30)
        assert await page.run("[live(), reason()]") == ["webrtc_websocket", "first_choice"]
        # Said, and answered aloud.
        await page.run("say(0.8)")
        await page.wait_for("said('user').length === 1 && said('assistant').length === 1", 30)
        # A tool of the broker's: once, and its output is answered.
        on.azure.call_next(*TOOL)
        await answered("Where is my order?")
        (called,) = await on.tools.called()
        assert called["arguments"] == TOOL[1]
        # Interrupted by speech.
        await on.azure.speak_long(page)
        await page.wait_for(f"{find('doing')}.textContent.includes('peak')", 30)
        before = await page.run("[said('user').length, lines('assistant').length]")
        await page.run("say(0.8)")
        await page.wait_for("lines('assistant').some((line) => line.dataset.interrupted === 'true')", 30)
        await page.wait_for(f"said('user').length > {before[0]} && lines('assistant').length > {before[1]}", 30)
        # Another agent is another call.
        await page.run(
            f"(() => {{ const a = {find('agent')}; a.value = 'marcus'; a.dispatchEvent(new Event('change')); }})()"
        )
        await page.wait_for("live() === 'webrtc_websocket' && reason() === 'agent_switched'", 30)
        await answered("Who are you?")
        # A lost control socket: the talk goes on in a new call.
        await on.azure.lose_control(page)
        await page.wait_for("live() === 'webrtc_websocket' && reason() === 'azure_dropped'", 30)
        await answered("Are you there?")
        shown = await page.run("[said('user'), lines('assistant').length, __plans.at(-1)]")
        await page.run(f"{find('hangup')}.click()")
        await eventually(lambda: is_over(on))
        assert len(on.tools.calls) == 1

        # Each turn is kept once, in order, whoever told of it.
        plan = shown[2]

        async def kept() -> list[dict[str, Any]]:
            answer = await on.broker.client.get(
                f"/api/v1/memory/sessions/{plan['session_id']}/turns",
                headers={"Authorization": f"Bearer {plan['session_token']}"},
            )
            found: list[dict[str, Any]] = answer.json()["turns"]
            return found if len(found) >= len(shown[0]) + shown[1] else []

        turns = await eventually(kept)
        assert [turn["content"] for turn in turns if turn["role"] == "user"] == shown[0]
        assert len([turn for turn in turns if turn["role"] == "assistant"]) == shown[1]
        assert [plan["agent_id"] for plan in await page.run("__plans")] == ["elena", "marcus", "marcus"]


async def is_over(on: Stage) -> bool:
    return await on.azure.calls() == 0 and not on.broker.relay.active


@pytest.mark.parametrize("engine", ["chromium", "firefox"])
@retry_if_host_busy(tries=3)
async def test_talk_outlives_its_session_and_its_media(
    engine: str, engine_page: ScriptPage, start_broker: StartBroker, tmp_path: Path
) -> None:
    page = engine_page
    async with serve(SimulatorConfig(kinds=frozenset({"unified"}))) as azure:
        azure.set_faults({"match": CONTROL, "fault": "session_expires", "seconds": 6})
        broker = await start_broker(
            azure, voice_live_webrtc="on", token_strategies=("voice_live_webrtc", "websocket_proxy")
        )
        await page.goto(broker.base_url)
        await page.run(KEEP_PLANS)
        await page.run(PREPARE)
        await page.run(f"{find('talk')}.click()", user_gesture=True)
        await page.wait_for("live() === 'webrtc_websocket'", 30)
        # The session expires: the talk goes on in a new call, of which the media die.
        azure.set_faults({"match": CONTROL, "fault": "die_after", "seconds": 3})
        await page.wait_for("live() === 'webrtc_websocket' && __plans.length === 2", 30)
        await page.wait_for("live() === 'websocket_proxy'", 30)
        await page.run("type('Are you there?')")
        await page.wait_for("said('user').includes('Are you there?') && said('assistant').length > 0", 30)
        await page.run(f"{find('hangup')}.click()")
        await azure.until_calls(0)
