/**
 * The jitter buffer: sound that waits to be played, and how far each item was played. It uses no audio API: the playback
 * worklet pulls from it.
 *
 * The server sends faster than real time, but networks stall. Playback starts once some sound is buffered (the preroll).
 * Each stall doubles the preroll, up to a limit.
 */

import { WIRE_RATE } from "./pcm.js";

/**
 * @typedef {object} Cut  An item that was silenced, and how far it had been played.
 * @property {string} itemId
 * @property {number} contentIndex
 * @property {number} playedMs
 *
 * @typedef {object} Segment
 * @property {string} itemId
 * @property {number} contentIndex
 * @property {Int16Array[]} chunks
 * @property {number} offset    samples of the first chunk that were pulled
 * @property {number} pulled    samples of the whole segment that were pulled
 * @property {boolean} finished no more will come
 *
 * @typedef {object} JitterOptions
 * @property {number} [prerollMs]
 * @property {number} [maxPrerollMs]
 * @property {number} [capacityMs]
 */

export class JitterBuffer {
  /** @type {Segment[]} */
  #segments = [];
  #bufferedSamples = 0;
  #flowing = false;
  #prerollMs;
  #maxPrerollMs;
  #capacitySamples;
  #underruns = 0;
  #droppedSamples = 0;

  /** @param {JitterOptions} [options] */
  constructor({ prerollMs = 60, maxPrerollMs = 240, capacityMs = 600_000 } = {}) {
    this.#prerollMs = prerollMs;
    this.#maxPrerollMs = maxPrerollMs;
    this.#capacitySamples = toSamples(capacityMs);
  }

  get bufferedMs() {
    return toMs(this.#bufferedSamples);
  }

  /** How often the buffer ran empty in the middle of an item. */
  get underruns() {
    return this.#underruns;
  }

  get droppedMs() {
    return toMs(this.#droppedSamples);
  }

  /** Whether an item was pushed that has not been played to its end. */
  get busy() {
    return this.#segments.length > 0;
  }

  /**
   * Adds samples at 24 kHz. Samples beyond the capacity are dropped and counted.
   * @param {string} itemId
   * @param {number} contentIndex
   * @param {Int16Array} samples
   */
  push(itemId, contentIndex, samples) {
    const free = this.#capacitySamples - this.#bufferedSamples;
    const kept = samples.length > free ? samples.subarray(0, free) : samples;
    this.#droppedSamples += samples.length - kept.length;
    const last = this.#segments.at(-1);
    if (last && last.itemId === itemId && last.contentIndex === contentIndex && !last.finished) {
      last.chunks.push(kept);
    } else {
      if (last) last.finished = true; // its successor has begun
      this.#segments.push({ itemId, contentIndex, chunks: [kept], offset: 0, pulled: 0, finished: false });
    }
    this.#bufferedSamples += kept.length;
  }

  /**
   * Marks an item as complete, so that its end does not count as a stall.
   * @param {string} itemId
   */
  finish(itemId) {
    for (const segment of this.#segments) if (segment.itemId === itemId) segment.finished = true;
    this.#dropPlayed();
  }

  /**
   * Fills `output` with the next samples as floats, and with silence where the buffer is empty.
   * @param {Float32Array} output
   * @returns {number} how many samples were sound
   */
  pull(output) {
    output.fill(0);
    if (!this.#flowing && !this.#mayStart()) return 0;
    this.#flowing = true;
    let filled = 0;
    while (filled < output.length && this.#bufferedSamples > 0) filled += this.#pullFromHead(output, filled);
    this.#dropPlayed();
    if (filled < output.length) this.#runDry();
    return filled;
  }

  /**
   * Drops all that waits.
   * @param {number} [unheardSamples] pulled already, but not heard yet
   * @returns {Cut[]} the items cut short, in their order
   */
  clear(unheardSamples = 0) {
    const cuts = this.#segments.map(({ itemId, contentIndex, pulled }) => ({
      itemId,
      contentIndex,
      playedMs: Math.floor(toMs(Math.max(0, pulled - unheardSamples))),
    }));
    this.#segments = [];
    this.#bufferedSamples = 0;
    this.#flowing = false;
    return cuts;
  }

  #mayStart() {
    if (this.#bufferedSamples === 0) return false;
    return this.#segments[0].finished || this.#bufferedSamples >= toSamples(this.#prerollMs);
  }

  /**
   * @param {Float32Array} output
   * @param {number} at
   */
  #pullFromHead(output, at) {
    const segment = /** @type {Segment} */ (this.#segments.find(({ chunks }) => chunks.length > 0));
    const chunk = segment.chunks[0];
    const count = Math.min(output.length - at, chunk.length - segment.offset);
    for (let index = 0; index < count; index += 1) output[at + index] = chunk[segment.offset + index] / 32_768;
    segment.offset += count;
    segment.pulled += count;
    this.#bufferedSamples -= count;
    if (segment.offset === chunk.length) {
      segment.chunks.shift();
      segment.offset = 0;
    }
    return count;
  }

  /** Forgets items that are complete and played to their end: they need no truncation. */
  #dropPlayed() {
    while (this.#segments.length > 0 && this.#segments[0].finished && this.#segments[0].chunks.length === 0) {
      this.#segments.shift();
    }
  }

  #runDry() {
    this.#flowing = false;
    if (this.#segments.length === 0) return;
    this.#underruns += 1;
    this.#prerollMs = Math.min(this.#maxPrerollMs, this.#prerollMs * 2);
  }
}

/** @param {number} samples */
function toMs(samples) {
  return (samples * 1000) / WIRE_RATE;
}

/** @param {number} ms */
function toSamples(ms) {
  return Math.round((ms * WIRE_RATE) / 1000);
}
