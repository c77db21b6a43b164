"""A call runs for the agent that made it, whoever has the talk by then."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.agents import agents_of
from token_broker.relay.answers.actions import Run
from token_broker.relay.answers.agent_calls import AgentCalls
from token_broker.relay.counters import TalkCounters
from token_broker.security.tokens import Owner
from token_broker.sessions.agents import AgentRegistry
from token_broker.tools.runner import ToolCall, ToolOutput

AGENTS = """
default = "ann"
[agents.ann]
name = "Ann"
voices = { ga = "marin", preview = "en-US-AvaNeural" }
instructions = "You are Ann."
builtin_tools = ["recall", "end_talk"]
[agents.bob]
inherits = "ann"
name = "Bob"
"""


@dataclass
class Runner:
    """Notes for which agent it runs each call."""

    ran: list[tuple[str, str]] = field(default_factory=list)

    async def run(self, call: ToolCall) -> ToolOutput:
        self.ran.append((call.name, call.agent.id))
        return ToolOutput("ran", ok=True)


@pytest.fixture
def agents(tmp_path: Path) -> AgentRegistry:
    return agents_of(tmp_path, AGENTS)


async def test_call_is_of_the_agent_that_made_it(agents: AgentRegistry) -> None:
    async def end(name: str, arguments: str, call_id: str) -> ToolOutput:
        return ToolOutput(f"{name} {arguments} {call_id}", ok=True)

    runner, speaks = Runner(), [agents["ann"]]
    calls = AgentCalls(runner, Owner("s", "p", 1), lambda: speaks[0], TalkCounters(), builtin=end)
    recall, end_talk = (Run(calls.tools()[name], "c", "{}", "azure") for name in ("recall", "end_talk"))
    assert (await calls.run(end_talk)).ok
    speaks[0] = agents["bob"]
    assert (await calls.run(recall)).ok
    assert runner.ran == [("recall", "ann")]
    assert not (await calls.run(end_talk)).ok, "what ends a talk or hands it over is the current agent's"
