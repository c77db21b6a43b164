"""Records what reaches a page's loudspeaker: each node that is connected to a context's destination, and each media
element that plays a stream. Installed before the page's own scripts; the page knows nothing of it."""

import base64
from dataclasses import dataclass

import numpy as np

from tests.web.support.chromium import Page
from tests.web.support.speech import Samples

__all__ = ["MICROPHONE_RATE", "Recording", "install_recorder", "recording", "without_processing"]

MICROPHONE_RATE = 48_000

_SCRIPT = """
(() => {
  const heard = (window.__heard = { rate: 0, blocks: [], context: null });
  const processor = `registerProcessor("test-recorder", class extends AudioWorkletProcessor {
    process([channels]) { if (channels.length) this.port.postMessage([currentTime, channels[0].slice()]); return true; }
  });`;
  const module = URL.createObjectURL(new Blob([processor], { type: "text/javascript" }));
  const ready = new WeakMap();
  const connect = AudioNode.prototype.connect;
  async function record(node) {
    const { context } = node;
    if (!ready.has(context)) ready.set(context, context.audioWorklet.addModule(module));
    await ready.get(context);
    const recorder = new AudioWorkletNode(context, "test-recorder", { numberOfOutputs: 0 });
    recorder.port.onmessage = ({ data }) => heard.blocks.push(data);
    heard.rate = context.sampleRate;
    heard.context = context;
    connect.call(node, recorder);
  }
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode) record(this);
    return connect.call(this, target, ...rest);
  };
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () {
    if (this.srcObject) record(new AudioContext().createMediaStreamSource(this.srcObject));
    return play.call(this);
  };
})();
"""

_NO_PROCESSING = """
(() => {
  window.__asked = [];
  const { mediaDevices } = navigator;
  const get = mediaDevices.getUserMedia.bind(mediaDevices);
  mediaDevices.getUserMedia = (constraints) => {
    window.__asked.push(constraints);
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    return get({ audio });
  };
})();
"""


@dataclass(frozen=True)
class Recording:
    """What was heard, `rate` samples a second; `gaps` counts blocks that are missing in the context's own time."""

    samples: Samples
    rate: int
    gaps: int


async def install_recorder(page: Page) -> None:
    await page.call("Page.setBypassCSP", enabled=True)  # the recorder's own module; the page's policy is tested apart
    await page.on_every_page(_SCRIPT)


async def without_processing(page: Page) -> None:
    """Takes the browser's noise suppression out, which would change what is compared; `__asked` keeps the wish."""
    await page.on_every_page(_NO_PROCESSING)


async def recording(page: Page) -> Recording:
    """What was heard since the page began, or since the last call."""
    taken = await page.run(
        """(() => {
            const { blocks, rate } = __heard;
            __heard.blocks = [];
            const length = blocks.reduce((sum, [, block]) => sum + block.length, 0);
            const all = new Int16Array(length);
            let at = 0, gaps = 0, expected = null;
            for (const [time, block] of blocks) {
                if (expected !== null && Math.abs(time - expected) > 0.5 / rate) gaps += 1;
                expected = time + block.length / rate;
                for (const sample of block) all[at++] = Math.max(-1, Math.min(1, sample)) * 32767;
            }
            const bytes = new Uint8Array(all.buffer);
            let text = "";
            for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
            return { rate, gaps, pcm: btoa(text) };
        })()"""
    )
    samples = np.frombuffer(base64.b64decode(taken["pcm"]), "<i2") / 32_768
    return Recording(samples, taken["rate"], taken["gaps"])
