"""A Python with packages that do not go with ours, installed once for each state of a lock file."""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

__all__ = ["installed_python"]

_LIMIT_S = 600


def installed_python(lock: Path) -> Path:
    """The interpreter of `.venv` beside the `lock`, made if need be. Raises RuntimeError that says what to do."""
    folder = lock.parent / ".venv"
    python, stamp = folder / "bin" / "python", folder / ".installed"
    state = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # test processes run side by side
        if not stamp.exists() or stamp.read_text() != state:
            _run("the module venv", [sys.executable, "-m", "venv", "--clear", str(folder)])
            # The lock is complete, so that nothing has to be resolved.
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            _run("the package index, once", [*pip, "--no-compile", "--require-hashes", "--requirement", str(lock)])
            stamp.write_text(state)
    return python


def _run(needs: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command[:4])}` failed; it needs {needs}:\n{done.stderr}")
