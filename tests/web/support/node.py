"""Node, and the few tools that the browser client is checked with."""

import asyncio
import subprocess
from pathlib import Path

from tests.support.node import find_tool, installed_modules

__all__ = ["CLIENT", "TOOLS", "installed_tools", "run_node"]

TOOLS = Path(__file__).parents[1]
CLIENT = TOOLS.parents[1] / "web_client"


def installed_tools() -> Path:
    """`tests/web/node_modules`, installed if need be. Raises FileNotFoundError or RuntimeError that say what to do."""
    return installed_modules(TOOLS)


async def run_node(*arguments: str | Path) -> str:
    """What `node` prints. Raises AssertionError, with all of it, where it fails."""
    process = await asyncio.create_subprocess_exec(
        find_tool("node"), *map(str, arguments), cwd=TOOLS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, output.decode()
    return output.decode()
