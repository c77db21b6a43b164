"""PyPI `openai-agents`, in a Python of its own: with one tool, at an agent that has this tool and others."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSession

from tests.clients.programs.talk_log import TalkLog


async def _server_events(session: RealtimeSession) -> AsyncIterator[Any]:
    async for event in session:
        if event.type == "error":
            raise RuntimeError(f"an error came: {event.error}")
        if event.type == "raw_model_event" and event.data.type == "raw_server_event":
            yield SimpleNamespace(**event.data.data)


async def talk(setup: dict[str, Any]) -> dict[str, Any]:
    called = []

    async def show(place: str) -> str:
        """Shows a map."""
        called.append(place)
        return f"shown: {place}"

    tools = [function_tool(show, name_override="map")]
    agent = RealtimeAgent(name="Assistant", instructions="You are a pirate.", tools=tools)
    url = f"{setup['http'].replace('http', 'ws', 1)}{setup['openaiPath']}/realtime?model={setup['model']}"
    runner = RealtimeRunner(agent, config={"tracing_disabled": True})
    async with await runner.run(model_config={"url": url, "api_key": setup["key"]}) as session:
        log = TalkLog(_server_events(session))
        await log.until("session.updated")
        await session.send_message("[call ok {}]")
        await log.until("response.done", count=2)
        await session.send_message('[call map {"place":"Rome"}] [call ok {}]')
        await log.until("response.done", count=4)
        await session.send_message("Thanks.")
        await log.until("response.done", count=5)
    return log.report() | {"called": called}
