/** PCM16, mono, 24 kHz, little-endian, in base64: the audio of the Realtime API's JSON events. */
/** @param {Int16Array} pcm */
export declare function pcm16ToFloat(pcm: Int16Array): Float32Array<ArrayBuffer>;
/** @param {Int16Array} pcm */
export declare function encodePcm16(pcm: Int16Array): string;
/**
 * @param {string} base64 an odd byte at the end is dropped
 * @throws {DOMException} where it is not base64
 */
export declare function decodePcm16(base64: string): Int16Array<ArrayBuffer>;
/**
 * The frame that carries a chunk. Its bytes are exactly those that the broker passes on unparsed.
 * @param {Int16Array} pcm
 */
export declare function appendFrame(pcm: Int16Array): string;
