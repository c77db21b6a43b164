/** PCM16, mono, 24 kHz, little-endian, in base64: the audio of the Realtime API's JSON events. */

export const WIRE_RATE = 24_000;
export const CHUNK_MS = 20;
export const CHUNK_SAMPLES = (WIRE_RATE * CHUNK_MS) / 1000;

const BASE64_STEP_BYTES = 0x6000; // a multiple of 3, so that pieces join; below the engines' limit of arguments

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

/** @param {Int16Array} pcm */
export function pcm16ToFloat(pcm) {
  const samples = new Float32Array(pcm.length);
  for (let index = 0; index < pcm.length; index += 1) samples[index] = pcm[index] / 32_768;
  return samples;
}

/** @param {Int16Array} pcm */
export function encodePcm16(pcm) {
  const bytes = new Uint8Array(pcm.length * 2);
  const view = new DataView(bytes.buffer);
  for (let index = 0; index < pcm.length; index += 1) view.setInt16(index * 2, pcm[index], true);
  let text = "";
  for (let start = 0; start < bytes.length; start += BASE64_STEP_BYTES) {
    text += btoa(String.fromCharCode(...bytes.subarray(start, start + BASE64_STEP_BYTES)));
  }
  return text;
}

/**
 * @param {string} base64 an odd byte at the end is dropped
 * @throws {DOMException} where it is not base64
 */
export function decodePcm16(base64) {
  const text = atob(base64);
  const pcm = new Int16Array(text.length >> 1);
  for (let index = 0; index < pcm.length; index += 1) {
    pcm[index] = text.charCodeAt(2 * index) | (text.charCodeAt(2 * index + 1) << 8);
  }
  return pcm;
}

/**
 * The frame that carries a chunk. Its bytes are exactly those that the broker passes on unparsed.
 * @param {Int16Array} pcm
 */
export function appendFrame(pcm) {
  return `{"type":"input_audio_buffer.append","audio":"${encodePcm16(pcm)}"}`;
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
