/**
 * The loudspeaker on the audio thread: PCM16 at 24 kHz through a jitter buffer to the device's rate. It counts what was
 * played, and is silent within 10 ms after a `clear`.
 */

import { JitterBuffer } from "./jitter-buffer.js";
import { WIRE_RATE } from "./pcm.js";
import { Resampler } from "./resampler.js";

/**
 * @typedef {{type: "push", itemId: string, contentIndex: number, pcm: Int16Array}
 *   | {type: "finish", itemId: string}
 *   | {type: "clear", request: number, unheardMs: number}
 *   | {type: "stop"}} PlaybackCommand
 *
 * @typedef {{type: "cleared", request: number, cuts: import("./jitter-buffer.js").Cut[]}
 *   | {type: "sounding", sounding: boolean, underruns: number}} PlaybackEvent
 */

const FADE_SAMPLES = (5 * WIRE_RATE) / 1000; // a hard cut clicks

class PlaybackProcessor extends AudioWorkletProcessor {
  #buffer = new JitterBuffer();
  #resampler = new Resampler(WIRE_RATE, sampleRate);
  /** Resampled samples beyond the end of the last block. */
  #surplus = new Float32Array(0);
  /** The fade-out of a sound that was cut. */
  #fading = new Float32Array(0);
  #sounding = false;
  #running = true;

  constructor() {
    super();
    this.port.onmessage = (/** @type {MessageEvent<PlaybackCommand>} */ { data }) => this.#execute(data);
  }

  /**
   * @param {Float32Array[][]} _inputs
   * @param {Float32Array[][]} outputs
   */
  process(_inputs, [channels]) {
    const length = channels[0].length;
    const wanted = this.#resampler.inputNeededFor(length - this.#surplus.length);
    const resampled = this.#resampler.process(this.#next(wanted));
    const ready = new Float32Array(this.#surplus.length + resampled.length);
    ready.set(this.#surplus);
    ready.set(resampled, this.#surplus.length);
    for (const channel of channels) channel.set(ready.subarray(0, length));
    this.#surplus = ready.slice(length);
    if (this.#sounding !== this.#buffer.busy) {
      this.#sounding = this.#buffer.busy;
      this.#post({ type: "sounding", sounding: this.#sounding, underruns: this.#buffer.underruns });
    }
    return this.#running;
  }

  /** @param {number} count */
  #next(count) {
    const samples = new Float32Array(count);
    const faded = this.#fading.subarray(0, count);
    this.#fading = this.#fading.subarray(faded.length);
    samples.set(faded);
    this.#buffer.pull(samples.subarray(faded.length));
    return samples;
  }

  /** @param {PlaybackCommand} command */
  #execute(command) {
    switch (command.type) {
      case "push":
        return this.#buffer.push(command.itemId, command.contentIndex, command.pcm);
      case "finish":
        return this.#buffer.finish(command.itemId);
      case "clear":
        return this.#clear(command.request, command.unheardMs);
      case "stop":
        this.#running = false;
    }
  }

  /**
   * @param {number} request
   * @param {number} unheardMs the output latency: what has left this thread, but was not heard yet
   */
  #clear(request, unheardMs) {
    const tail = new Float32Array(FADE_SAMPLES);
    this.#buffer.pull(tail);
    this.#fading = tail.map((sample, index) => sample * (1 - index / FADE_SAMPLES));
    const unheard = (unheardMs * WIRE_RATE) / 1000 + FADE_SAMPLES + this.#resampler.delaySamples;
    this.#post({ type: "cleared", request, cuts: this.#buffer.clear(Math.ceil(unheard)) });
  }

  /** @param {PlaybackEvent} event */
  #post(event) {
    this.port.postMessage(event);
  }
}

registerProcessor("voice-playback", PlaybackProcessor);
