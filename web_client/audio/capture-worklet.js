/** The microphone on the audio thread: the device's samples as PCM16 at 24 kHz, in chunks of 20 ms. */

import { Chunker, WIRE_RATE, floatToPcm16 } from "./pcm.js";
import { Resampler } from "./resampler.js";

class CaptureProcessor extends AudioWorkletProcessor {
  #resampler = new Resampler(sampleRate, WIRE_RATE);
  #chunker = new Chunker();
  #running = true;

  constructor() {
    super();
    this.port.onmessage = () => {
      this.#running = false; // the only message is `stop`
    };
  }

  /** @param {Float32Array[][]} inputs */
  process([channels]) {
    if (channels.length > 0) {
      for (const chunk of this.#chunker.push(this.#resampler.process(mix(channels)))) {
        const { buffer } = floatToPcm16(chunk);
        this.port.postMessage(buffer, [buffer]);
      }
    }
    return this.#running;
  }
}

/** @param {Float32Array[]} channels */
function mix(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, index) => channels.reduce((sum, channel) => sum + channel[index], 0) / channels.length);
}

registerProcessor("voice-capture", CaptureProcessor);
