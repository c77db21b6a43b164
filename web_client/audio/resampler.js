/**
 * A streaming, band-limited resampler: polyphase windowed sinc (Kaiser), for ratios of at most 1,024 phases.
 *
 * Flat to 10/12 of the lower rate's Nyquist frequency (10 kHz where 24 kHz is the lower rate), and 80 dB down above that
 * Nyquist frequency, so that aliases are inaudible.
 */

const STOP_BAND_DB = 80;
const PASS_BAND = 10 / 12; // of the lower Nyquist frequency
const MAX_PHASES = 1024;

/**
 * Whether `Resampler` can go from one rate to the other (both in Hz).
 * @param {number} inputRate
 * @param {number} outputRate
 */
export function canResample(inputRate, outputRate) {
  return (
    Number.isInteger(inputRate) &&
    Number.isInteger(outputRate) &&
    inputRate > 0 &&
    outputRate > 0 &&
    outputRate / gcd(inputRate, outputRate) <= MAX_PHASES
  );
}

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
   * @param {number} outputRate in Hz
   * @throws {RangeError} where `canResample` is false
   */
  constructor(inputRate, outputRate) {
    if (!canResample(inputRate, outputRate)) {
      throw new RangeError(`cannot resample from ${inputRate} Hz to ${outputRate} Hz`);
    }
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
