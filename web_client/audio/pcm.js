/** PCM16, mono, 24 kHz, little-endian, in base64: the audio of the Realtime API's JSON events. */

const BASE64_STEP_BYTES = 0x6000; // a multiple of 3, so that pieces join; below the engines' limit of arguments

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
