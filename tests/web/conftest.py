"""Browsers for tests: one whose microphone speaks, and one whose microphone is silent."""

import contextlib
import fcntl
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from aioice import ice

from tests.conftest import group_of
from tests.web.support.bundlers import build_page, packed_client
from tests.web.support.chromium import Browser, run_chromium
from tests.web.support.demo import Demo, run_demo
from tests.web.support.firefox import firefox_page, run_firefox
from tests.web.support.page import ScriptPage
from tests.web.support.recorder import MICROPHONE_RATE
from tests.web.support.sound_card import SoundCard, run_sound_card
from tests.web.support.speech import Samples, speech, write_wav
from tests.web.support.webkit import run_webkit, webkit_page

LEAD_IN_S = 1.4  # longer than a busy machine takes until a talk is live
SAID_S = 1.6
PAUSE_S = 2.2


@pytest.fixture(autouse=True)
def _in_one_process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> None:
    """Fails where a group's tests run in several processes: several browsers would starve each other's audio."""
    if worker_id != "master":
        note = tmp_path_factory.getbasetemp().parent / f"process-of-{group_of(request.node.nodeid)}"
        with contextlib.suppress(FileExistsError), note.open("x") as first:
            first.write(worker_id)
        assert note.read_text() == worker_id


@pytest.fixture(autouse=True)
def _own_mdns() -> Iterator[None]:
    """aioice keeps a socket and a lock for as long as the thread lives, but a test's event loop ends with the test."""
    yield
    vars(ice._mdns).clear()


@pytest.fixture(scope="session")
def said() -> Samples:
    """What the microphone says, over and over, at 48 kHz."""
    return speech(SAID_S, MICROPHONE_RATE)


@pytest.fixture(scope="session")
def microphone(said: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lead_in, pause = np.zeros(int(LEAD_IN_S * MICROPHONE_RATE)), np.zeros(int(PAUSE_S * MICROPHONE_RATE))
    path: Path = tmp_path_factory.mktemp("microphone") / "said.wav"
    return write_wav(path, np.concatenate([lead_in, said, pause]), MICROPHONE_RATE)


@pytest.fixture(scope="session")
def silent_microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("microphone") / "silence.wav"
    return write_wav(path, np.zeros(MICROPHONE_RATE), MICROPHONE_RATE)


@pytest.fixture(scope="session")
def speaking_chromium(microphone: Path) -> Iterator[str]:
    with run_chromium(microphone) as url:
        yield url


@pytest.fixture(scope="session")
def quiet_chromium(silent_microphone: Path) -> Iterator[str]:
    with run_chromium(silent_microphone) as url:
        yield url


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeOnce:
    """`make_once(name, make)` is a folder that `make(folder)` has made, once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        with (shared / f"{name}.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not folder.exists():
                unfinished = shared / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def package(make_once: MakeOnce) -> Path:
    """The packed package, unpacked as npm does it."""
    return make_once("packed-client", packed_client) / "package"


@pytest.fixture
def built_page(make_once: MakeOnce, package: Path, bundler: str) -> Path:
    """The page of tests/web/bundlers as `bundler` builds it for production."""
    return make_once(f"built-by-{bundler}", lambda folder: build_page(bundler, package, folder))


@pytest.fixture(scope="session")
def sound_card() -> Iterator[SoundCard | None]:
    with run_sound_card() as card:
        yield card


@pytest.fixture(scope="session")
def firefox(sound_card: SoundCard | None) -> Iterator[str]:
    with run_firefox(sound_card) as url:
        yield url


@pytest.fixture(scope="session")
def webkit(sound_card: SoundCard | None) -> Iterator[str]:
    with run_webkit(sound_card) as url:
        yield url


@pytest.fixture
async def engine_page(request: pytest.FixtureRequest, engine: str) -> AsyncIterator[ScriptPage]:
    """A page of the engine that a test is parametrised with: `chromium`, `firefox` or `webkit`."""
    if engine == "chromium":
        async with Browser.connect(request.getfixturevalue("quiet_chromium")) as browser, browser.page() as page:
            yield page
    elif engine == "firefox":
        async with firefox_page(request.getfixturevalue("firefox")) as tab:
            yield tab
    else:
        async with webkit_page(request.getfixturevalue("webkit")) as window:
            yield window


@pytest.fixture
async def browser(speaking_chromium: str) -> AsyncIterator[Browser]:
    """A browser that speaks, pauses, and speaks again."""
    async with Browser.connect(speaking_chromium) as running:
        yield running


@pytest.fixture
async def quiet_browser(quiet_chromium: str) -> AsyncIterator[Browser]:
    """A browser whose microphone is silent."""
    async with Browser.connect(quiet_chromium) as running:
        yield running


@pytest.fixture(scope="module")
def running_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with run_demo(tmp_path_factory.mktemp("demo")) as running:
        yield running


@pytest.fixture
async def demo(running_demo: Demo) -> Demo:
    """The module's demo, without what an earlier test did to it."""
    await running_demo.recover()
    return running_demo
