"""Node, and the few tools that the browser client is checked with, installed once for each state of their lock."""

import asyncio
import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

__all__ = ["CLIENT", "TOOLS", "installed_tools", "run_node"]

TOOLS = Path(__file__).parents[1]
CLIENT = TOOLS.parents[1] / "web_client"
HOW_TO = (
    "The browser client's tests need Node 20 or newer, with npm, and none was found. Install it (Debian, Ubuntu: "
    "apt install nodejs npm; or https://nodejs.org), so that `node` and `npm` are on the path."
)


def installed_tools() -> Path:
    """`tests/web/node_modules`, installed if need be. Raises FileNotFoundError or RuntimeError that say what to do."""
    modules = TOOLS / "node_modules"
    stamp = modules / ".installed"
    state = hashlib.sha256((TOOLS / "package-lock.json").read_bytes()).hexdigest()
    with (TOOLS / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes run side by side
        if not stamp.exists() or stamp.read_text() != state:
            command = [_path("npm"), "ci", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=TOOLS, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                raise RuntimeError(f"`npm ci` in {TOOLS} failed; it needs the npm registry, once:\n{done.stderr}")
            stamp.write_text(state)
    return modules


async def run_node(*arguments: str | Path) -> str:
    """What `node` prints. Raises AssertionError, with all of it, where it fails."""
    process = await asyncio.create_subprocess_exec(
        _path("node"), *map(str, arguments), cwd=TOOLS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, output.decode()
    return output.decode()


def _path(tool: str) -> str:
    if found := shutil.which(tool):
        return found
    raise FileNotFoundError(HOW_TO)
