"""Node, and what a folder's `package-lock.json` names, installed once for each state of that lock."""

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.support.processes import run_program

__all__ = ["find_tool", "installed_modules", "run_node"]

HOW_TO = (
    "These tests need Node 20 or newer, with npm, and none was found. Install it (Debian, Ubuntu: "
    "apt install nodejs npm; or https://nodejs.org), so that `node` and `npm` are on the path."
)
_LIMIT_S = 120


def installed_modules(folder: Path) -> Path:
    """`folder`/node_modules, installed if need be. Raises FileNotFoundError or RuntimeError that say what to do."""
    modules = folder / "node_modules"
    stamp = modules / ".installed"
    state = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    with (folder / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes run side by side
        if not stamp.exists() or stamp.read_text() != state:
            command = [find_tool("npm"), "ci", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                raise RuntimeError(f"`npm ci` in {folder} failed; it needs the npm registry, once:\n{done.stderr}")
            stamp.write_text(state)
    return modules


def find_tool(name: str) -> str:
    """The path of `node` or `npm`. Raises FileNotFoundError that says what to do."""
    if found := shutil.which(name):
        return found
    raise FileNotFoundError(HOW_TO)


async def run_node(*arguments: str | Path, cwd: Path, stdin: str = "") -> str:
    """What `node` prints. Raises AssertionError, with what it says, where it fails or has something to complain of."""
    finished = await run_program([find_tool("node"), *map(str, arguments)], cwd=cwd, stdin=stdin, timeout_s=_LIMIT_S)
    assert (finished.code, finished.err) == (0, ""), finished.out + finished.err
    return finished.out
