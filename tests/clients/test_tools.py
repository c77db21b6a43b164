"""Official clients at an agent with tools: they run those that are theirs, and never see the others."""

from pathlib import Path

import pytest
import trustme

from tests.clients.support.compat import BROKERS, open_compat
from tests.clients.support.programs import ClientRunner
from tests.clients.support.setups import make_setup
from tests.hooks.support import SECRET
from tests.relay.support.tool_talks import agents_with_tools
from tests.support.agents import write_agents
from tests.support.tool_server import run_tool_server


@pytest.mark.parametrize("upstream", BROKERS)
@pytest.mark.parametrize("program", ["agents_tools.mjs", "agents_tools_python"])
async def test_client_runs_its_own_tools_alone(
    upstream: str, program: str, clients: ClientRunner, authority: trustme.CA, tmp_path: Path
) -> None:
    async with run_tool_server() as server:
        file = write_agents(tmp_path, agents_with_tools(server))
        async with open_compat(upstream, tmp_path, authority, agents_file=file, tools_secret=SECRET) as compat:
            report = await clients.run(program, make_setup(compat, await compat.mint()))
        assert "failure" not in report, report
        assert report["called"] == ["Rome"]
        assert [call["tool"] for call in server.calls] == ["ok", "ok"]
        gave = '[simulated] the function gave: {"ran": "ok", "arguments": {}}'
        first, second, last = report["answers"]
        assert (first, last) == (gave, "[simulated] you wrote: Thanks.")
        assert second in {gave, "[simulated] the function gave: shown: Rome"}  # whichever output came last
        tools = [answer.follows for answer in compat.azure.transcript.answers].count("tool")
        assert (tools, len(compat.azure.transcript.answers)) == (2, 5)
