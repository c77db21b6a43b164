"""Records a page's sound, without the page's knowledge: what it plays, and what its microphone gives.

Played is each node that is connected to a context's destination, and each media element's stream.
"""

import base64
import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tests.web.support.chromium import Page
from tests.web.support.speech import Samples

__all__ = ["MICROPHONE_RATE", "Recording", "install_recorder", "recording", "without_processing"]

MICROPHONE_RATE = 48_000

_SCRIPT = """
(() => {
  const heard = (window.__heard = { rate: 0, blocks: [], said: [], context: null });
  const processor = `registerProcessor("test-recorder", class extends AudioWorkletProcessor {
    #block = new Int16Array(512);
    #filled = 0;
    #sounds = false;
    process([channels]) {
      // A node that nothing sounds through gives no channel, or silence: that depends on the browser's version.
      this.#sounds ||= channels[0]?.some((sample) => sample !== 0) ?? false;
      if (channels.length === 0 || !this.#sounds) return true;
      for (const sample of channels[0]) this.#block[this.#filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.#filled === 512) {
        this.port.postMessage([currentTime - (512 - 128) / sampleRate, this.#block.slice()]);
        this.#filled = 0;
      }
      return true;
    }
  });`;
  const module = URL.createObjectURL(new Blob([processor], { type: "text/javascript" }));
  const ready = new WeakMap();
  const connect = AudioNode.prototype.connect;
  async function record(node, blocks) {
    const { context } = node;
    if (!ready.has(context)) ready.set(context, context.audioWorklet.addModule(module));
    await ready.get(context);
    const recorder = new AudioWorkletNode(context, "test-recorder", { numberOfOutputs: 0 });
    recorder.port.onmessage = ({ data }) => heard[blocks].push(data);
    heard.rate = context.sampleRate;
    heard.context = context;
    connect.call(node, recorder);
  }
  // By its stream: the page measures what comes over WebRTC with a node of the same kind.
  const microphones = new WeakSet();
  const { mediaDevices } = navigator;
  const getUserMedia = mediaDevices.getUserMedia;
  mediaDevices.getUserMedia = async function (constraints) {
    const stream = await getUserMedia.call(this, constraints);
    microphones.add(stream);
    return stream;
  };
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode) record(this, "blocks");
    if (microphones.has(this.mediaStream) && target instanceof AnalyserNode) record(this, "said");
    return connect.call(this, target, ...rest);
  };
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () {
    if (this.srcObject) record(new AudioContext().createMediaStreamSource(this.srcObject), "blocks");
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
    """Recorded sound, `rate` samples a second. `gaps` counts blocks that are missing by the context's clock."""

    samples: Samples
    rate: int
    began_s: float
    gaps: int


async def install_recorder(page: Page) -> None:
    await page.call("Page.setBypassCSP", enabled=True)  # for the recorder's module; test_page.py tests the policy
    await page.on_every_page(_SCRIPT)


async def without_processing(page: Page) -> None:
    """Switches the browser's audio processing off, which changes the sound; `__asked` keeps the page's constraints."""
    await page.on_every_page(_NO_PROCESSING)


async def recording(page: Page, what: Literal["blocks", "said"] = "blocks") -> Recording:
    """What was played (or, with `said`, what the microphone gave) since the page was loaded or the last call."""
    taken = await page.run(
        """((what) => {
            const { [what]: blocks, rate } = __heard;
            __heard[what] = [];
            const all = new Int16Array(blocks.length * 512);
            let gaps = 0;
            blocks.forEach(([time, block], index) => {
                all.set(block, index * 512);
                if (index > 0 && Math.abs(time - blocks[index - 1][0] - 512 / rate) > 0.5 / rate) gaps += 1;
            });
            const bytes = new Uint8Array(all.buffer);
            let text = "";
            for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
            return { rate, gaps, began: blocks[0]?.[0] ?? 0, pcm: btoa(text) };
        })"""
        f"({json.dumps(what)})"
    )
    samples = np.frombuffer(base64.b64decode(taken["pcm"]), "<i2") / 32_768
    return Recording(samples, taken["rate"], taken["began"], taken["gaps"])
