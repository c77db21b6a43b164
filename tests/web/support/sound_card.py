"""A sound card of software, PulseAudio, for engines that bring no microphone of their own: what one says into it, the
browser's microphone gives; what the browser plays, one records."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.web.support.speech import Samples

__all__ = ["CARD_RATE", "SoundCard", "run_sound_card"]

CARD_RATE = 48_000
_START_S = 15
_RAW = ("--raw", f"--rate={CARD_RATE}", "--channels=1", "--format=s16le", "--latency-msec=100")


@dataclass(frozen=True)
class SoundCard:
    """A running card. Programs with `environment` use it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        # Its own home and runtime folder: neither a desktop's sound server nor its settings play a part.
        places = dict.fromkeys(("HOME", "XDG_RUNTIME_DIR", "PULSE_RUNTIME_PATH"), str(self.folder))
        return os.environ | places | {"PULSE_SERVER": f"unix:{self.folder / 'socket'}"}

    async def say(self, sound: Samples) -> None:
        """Says it into the microphone; returns when all of it is said."""
        pcm = (np.clip(sound, -1, 1) * 32_767).astype("<i2").tobytes()
        process = await self._start("pacat", "--playback", "--device=voice", *_RAW, stdin=subprocess.PIPE)
        async with _ended(process):
            await asyncio.wait_for(process.communicate(pcm), 10 + len(sound) / CARD_RATE)

    @contextlib.asynccontextmanager
    async def heard(self) -> AsyncIterator[bytearray]:
        """What is played from here to the end of the block, PCM16; it grows."""
        pcm = bytearray()
        process = await self._start("parec", "--device=speaker.monitor", *_RAW, stdout=subprocess.PIPE)

        async def read() -> None:
            assert process.stdout
            while block := await process.stdout.read(65_536):
                pcm.extend(block)

        reading = asyncio.create_task(read())
        try:
            async with _ended(process):
                yield pcm
        finally:
            await reading

    async def _start(self, *command: str, **streams: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(*command, env=self.environment, **streams)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def _ended(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@contextlib.contextmanager
def run_sound_card() -> Iterator[SoundCard | None]:
    """The card until the end of the block; None where there is no PulseAudio, or it does not start."""
    if not all(map(shutil.which, ("pulseaudio", "pactl", "pacat", "parec"))):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sound-", ignore_cleanup_errors=True) as folder:
        card = SoundCard(Path(folder))
        devices = (
            f"module-native-protocol-unix auth-anonymous=1 socket={card.folder / 'socket'}",
            f"module-null-sink sink_name=speaker rate={CARD_RATE} channels=1",
            f"module-null-sink sink_name=voice rate={CARD_RATE} channels=1",
            # Browsers offer no monitor of a loudspeaker as a microphone.
            "module-remap-source master=voice.monitor source_name=microphone",
        )
        loads = [argument for device in devices for argument in ("-L", device)]
        process = subprocess.Popen(
            ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", *loads],
            env=card.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield card if _is_ready(card, process) else None
        finally:
            process.terminate()
            process.wait()


def _is_ready(card: SoundCard, process: subprocess.Popen[bytes]) -> bool:
    end_s = time.monotonic() + _START_S
    choices = (("set-default-sink", "speaker"), ("set-default-source", "microphone"))
    while process.poll() is None and time.monotonic() < end_s:
        if (card.folder / "socket").exists() and all(
            subprocess.run(["pactl", *choice], env=card.environment, capture_output=True, check=False).returncode == 0
            for choice in choices
        ):
            return True
        time.sleep(0.05)
    return False
