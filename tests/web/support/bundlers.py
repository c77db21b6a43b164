"""Production builds of a page with the packed client, by bundlers that are installed once into the user's cache."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.node import find_tool, installed_modules

__all__ = ["BUNDLERS", "TOOLS", "build_page", "packed_client"]

TOOLS = Path(__file__).parents[1]
ROOT = TOOLS.parents[1]
FOLDER = TOOLS / "bundlers"
_LIMIT_S = 300


@dataclass(frozen=True)
class Bundler:
    """How a bundler builds the page in its working folder into `dist` there."""

    command: tuple[str, ...]
    """Arguments of Node."""
    page: str = "page"
    """What it builds, a folder of tests/web/bundlers."""
    built: str = "dist"


BUNDLERS = {
    "esbuild": Bundler(("build.mjs",)),
    "vite": Bundler(("node_modules/vite/bin/vite.js", "build", "--base", "./", "--logLevel", "warn")),
    "webpack": Bundler(("build.mjs",)),
    "parcel": Bundler(
        (
            *("node_modules/parcel/lib/bin.js", "build", "index.html", "--dist-dir", "dist", "--public-url", "./"),
            *("--no-cache", "--no-source-maps", "--no-autoinstall", "--log-level", "warn"),
        )
    ),
    "next": Bundler(("node_modules/next/dist/bin/next", "build"), page="next", built="out"),
}


def packed_client(folder: Path) -> Path:
    """The packed package, unpacked in `folder` as npm does it. Its sources have passed the type checker."""
    installed_modules(TOOLS)
    folder.mkdir()
    command = [ROOT / "scripts/pack-client", folder]
    packed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert packed.returncode == 0, packed.stdout + packed.stderr
    with tarfile.open(next(folder.glob("voice-session-*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def build_page(name: str, package: Path, target: Path) -> Path:
    """The page in `target` as this bundler builds it. Raises AssertionError that says why it can't."""
    bundler = BUNDLERS[name]
    with _workplace(name) as folder:
        for source in (FOLDER / bundler.page, FOLDER / name):
            shutil.copytree(
                source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "package*")
            )
        shutil.copytree(package, folder / "node_modules" / "voice-session")
        environment = os.environ | {"NODE_ENV": "production", "NEXT_TELEMETRY_DISABLED": "1", "CI": "1"}
        done = subprocess.run(
            [find_tool("node"), *bundler.command],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        shutil.copytree(folder / bundler.built, target)
    return target


@contextlib.contextmanager
def _workplace(name: str) -> Iterator[Path]:
    """A folder of this bundler's in the cache, for this process alone, where nothing is but what its lock names."""
    lock = FOLDER / name / "package-lock.json"
    state = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "token-broker-tests" / f"{name}-{state}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        kept = {".lock", "node_modules"}
        for found in folder.iterdir():
            if found.name not in kept:
                shutil.rmtree(found) if found.is_dir() else found.unlink()
        for file in (lock, lock.with_name("package.json"), FOLDER / ".npmrc"):
            shutil.copy(file, folder)
        shutil.rmtree(installed_modules(folder) / "voice-session", ignore_errors=True)
        yield folder
