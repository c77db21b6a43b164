/** PCM16, mono, 24 kHz, little-endian, in base64: the audio of the Realtime API's JSON events. */
export declare const WIRE_RATE = 24000;
export declare const CHUNK_MS = 20;
export declare const CHUNK_SAMPLES: number;
/**
 * @param {Float32Array} samples from -1 to 1; louder ones are clipped, NaN becomes silence
 * @returns {Int16Array<ArrayBuffer>}
 */
export declare function floatToPcm16(samples: Float32Array): Int16Array<ArrayBuffer>;
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
/** Cuts a stream of samples into chunks of one length. */
export declare class Chunker {
    #private;
    /** @param {number} chunkSamples */
    constructor(chunkSamples?: number);
    /**
     * Returns the chunks that `samples` completes, and keeps the rest.
     * @param {Float32Array} samples
     * @returns {Float32Array[]}
     */
    push(samples: Float32Array): Float32Array[];
}
