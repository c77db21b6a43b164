/**
 * Everything that runs on the audio thread: the microphone's and the loudspeaker's processors, and what they compute with.
 *
 * It is one file without imports. Bundlers copy a worklet as it is: what it imports would be missing beside the copy.
 * The page's thread imports the same classes from here, where no processor is registered.
 */

export const WIRE_RATE = 24_000;
export const CHUNK_MS = 20;
export const CHUNK_SAMPLES = (WIRE_RATE * CHUNK_MS) / 1000;

// --- samples

/**
 * @param {Float32Array} samples from -1 to 1; louder ones are clipped, NaN becomes silence
 * @returns {Int16Array<ArrayBuffer>}
 */
export function floatToPcm16(samples) {
  const pcm = new Int16Array(samples.length);
  for (let index = 0; index < samples.length; index += 1) {
    const scaled = Math.round(samples[index] * 32_767);
    pcm[index] = Math.max(-32_768, Math.min(32_767, scaled)); // NaN becomes 0
  }
  return pcm;
}

/** Cuts a stream of samples into chunks of one length. */
export class Chunker {
  #chunk;
  #filled = 0;

  /** @param {number} chunkSamples */
  constructor(chunkSamples = CHUNK_SAMPLES) {
    this.#chunk = new Float32Array(chunkSamples);
  }

  /**
   * Returns the chunks that `samples` completes, and keeps the rest.
   * @param {Float32Array} samples
   * @returns {Float32Array[]}
   */
  push(samples) {
    const chunks = [];
    let start = 0;
    while (start < samples.length) {
      const part = samples.subarray(start, start + this.#chunk.length - this.#filled);
      this.#chunk.set(part, this.#filled);
      this.#filled += part.length;
      start += part.length;
      if (this.#filled === this.#chunk.length) {
        chunks.push(this.#chunk.slice());
        this.#filled = 0;
      }
    }
    return chunks;
  }
}

// --- resampling

/**
 * A streaming, band-limited resampler: polyphase windowed sinc (Kaiser), for ratios of at most 1,024 phases.
 *
 * Flat to 10/12 of the lower rate's Nyquist frequency (10 kHz where 24 kHz is the lower rate), and 80 dB down above that
 * Nyquist frequency, so that aliases are inaudible.
 */
const STOP_BAND_DB = 80;
const PASS_BAND = 10 / 12; // of the lower Nyquist frequency

export class Resampler {
  #up;
  #down;
  #taps;
  /** `up` rows of `taps` coefficients. */
  #coefficients;
  /** Input samples that the next window still needs, oldest first. */
  #pending;
  #phase = 0;

  /**
   * @param {number} inputRate in Hz
   * @param {number} outputRate in Hz, to which `canResample` (rates.js) says that it can
   */
  constructor(inputRate, outputRate) {
    const divisor = gcd(inputRate, outputRate);
    this.#up = outputRate / divisor;
    this.#down = inputRate / divisor;
    if (inputRate === outputRate) {
      this.#taps = 1;
      this.#coefficients = Float32Array.of(1);
    } else {
      const nyquist = Math.min(inputRate, outputRate) / 2;
      const transition = (2 * Math.PI * nyquist * (1 - PASS_BAND)) / inputRate;
      this.#taps = Math.ceil((STOP_BAND_DB - 8) / (2.285 * transition)) + 1;
      const cutoff = (nyquist * (1 + PASS_BAND)) / 2 / inputRate;
      this.#coefficients = polyphase(this.#up, this.#taps, cutoff);
    }
    this.#pending = new Float32Array(this.#taps - 1);
  }

  /** The filter's group delay, in input samples. */
  get delaySamples() {
    return (this.#taps - 1) / 2;
  }

  /**
   * Takes the next samples of the stream, and returns the output that they complete.
   * @param {Float32Array} input
   * @returns {Float32Array}
   */
  process(input) {
    const taps = this.#taps;
    const samples = new Float32Array(this.#pending.length + input.length);
    samples.set(this.#pending);
    samples.set(input, this.#pending.length);
    const output = new Float32Array(this.#outputsFor(samples.length));
    let start = 0;
    let phase = this.#phase;
    for (let index = 0; index < output.length; index += 1) {
      const row = phase * taps;
      let sum = 0;
      for (let tap = 0; tap < taps; tap += 1) {
        sum += samples[start + tap] * this.#coefficients[row + tap];
      }
      output[index] = sum;
      phase += this.#down;
      start += Math.floor(phase / this.#up);
      phase %= this.#up;
    }
    this.#phase = phase;
    this.#pending = samples.slice(start);
    return output;
  }

  /**
   * How many input samples `process` needs next to give at least `count` output samples.
   * @param {number} count
   */
  inputNeededFor(count) {
    if (count <= 0) return 0;
    const lastStart = Math.floor((this.#phase + (count - 1) * this.#down) / this.#up);
    return Math.max(0, lastStart + this.#taps - this.#pending.length);
  }

  /** @param {number} available */
  #outputsFor(available) {
    const starts = available - this.#taps; // the last place where a whole window fits
    if (starts < 0) return 0;
    return Math.floor(((starts + 1) * this.#up - 1 - this.#phase) / this.#down) + 1;
  }
}

/**
 * The windowed sinc, cut into `up` rows; each row sums to one, so that no phase is louder than another.
 * @param {number} up
 * @param {number} taps a row
 * @param {number} cutoff in cycles an input sample
 */
function polyphase(up, taps, cutoff) {
  const beta = 0.1102 * (STOP_BAND_DB - 8.7);
  const length = up * taps;
  const centre = (length - 1) / 2;
  const coefficients = new Float32Array(length);
  for (let phase = 0; phase < up; phase += 1) {
    const row = new Float64Array(taps);
    let sum = 0;
    for (let tap = 0; tap < taps; tap += 1) {
      const place = (taps - 1 - tap) * up + phase;
      const time = (place - centre) / up;
      const window = besselI0(beta * Math.sqrt(1 - ((place - centre) / centre) ** 2));
      row[tap] = sinc(2 * cutoff * time) * window;
      sum += row[tap];
    }
    for (let tap = 0; tap < taps; tap += 1) coefficients[phase * taps + tap] = row[tap] / sum;
  }
  return coefficients;
}

/** @param {number} x */
function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/**
 * The modified Bessel function of the first kind, order zero, by its series.
 * @param {number} x
 */
function besselI0(x) {
  let term = 1;
  let sum = 1;
  for (let k = 1; k < 60 && term > 1e-12 * sum; k += 1) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

/**
 * @param {number} a
 * @param {number} b
 * @returns {number}
 */
function gcd(a, b) {
  return b === 0 ? a : gcd(b, a % b);
}

// --- what waits to be played

/**
 * The jitter buffer: sound that waits to be played, and how far each item was played. It uses no audio API: the playback
 * worklet pulls from it.
 *
 * The server sends faster than real time, but networks stall. Playback starts once some sound is buffered (the preroll).
 * Each stall doubles the preroll, up to a limit.
 */
/**
 * @typedef {object} Cut  An item that was silenced, and how far it had been played.
 * @property {string} itemId
 * @property {number} contentIndex
 * @property {number} playedMs
 * @property {number} totalMs  of its sound that had come
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
    const cuts = this.#segments.map(({ itemId, contentIndex, chunks, offset, pulled }) => ({
      itemId,
      contentIndex,
      playedMs: Math.floor(toMs(Math.max(0, pulled - unheardSamples))),
      totalMs: Math.floor(toMs(chunks.reduce((sum, chunk) => sum + chunk.length, pulled - offset))),
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

// --- the processors

/**
 * @typedef {{type: "push", itemId: string, contentIndex: number, pcm: Int16Array}
 *   | {type: "finish", itemId: string}
 *   | {type: "clear", request: number, unheardMs: number}
 *   | {type: "stop"}} PlaybackCommand
 *
 * @typedef {{type: "cleared", request: number, cuts: Cut[]}
 *   | {type: "sounding", sounding: boolean, underruns: number}} PlaybackEvent
 */

// On the page's thread, where this file is only imported, there are no processors.
if ("registerProcessor" in globalThis) registerProcessors();

function registerProcessors() {
  const FADE_SAMPLES = (5 * WIRE_RATE) / 1000; // a hard cut clicks

  /** The microphone on the audio thread: the device's samples as PCM16 at 24 kHz, in chunks of 20 ms. */
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

  /**
   * The loudspeaker on the audio thread: PCM16 at 24 kHz through a jitter buffer to the device's rate. It counts what was
   * played, and is silent within 10 ms after a `clear`.
   */
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

  registerProcessor("voice-capture", CaptureProcessor);
  registerProcessor("voice-playback", PlaybackProcessor);
}
