"""Node, and what a folder's `package-lock.json` names, installed once for each state of that lock."""

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

__all__ = ["find_tool", "installed_modules"]

HOW_TO = (
    "These tests need Node 20 or newer, with npm, and none was found. Install it (Debian, Ubuntu: "
    "apt install nodejs npm; or https://nodejs.org), so that `node` and `npm` are on the path."
)


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
