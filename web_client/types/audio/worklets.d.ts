/**
 * Everything that runs on the audio thread: the microphone's and the loudspeaker's processors, and what they compute with.
 *
 * It is one file without imports. Bundlers copy a worklet as it is: what it imports would be missing beside the copy.
 * The page's thread imports the same classes from here, where no processor is registered.
 */
export declare const WIRE_RATE = 24000;
export declare const CHUNK_MS = 20;
export declare const CHUNK_SAMPLES: number;
/**
 * @param {Float32Array} samples from -1 to 1; louder ones are clipped, NaN becomes silence
 * @returns {Int16Array<ArrayBuffer>}
 */
export declare function floatToPcm16(samples: Float32Array): Int16Array<ArrayBuffer>;
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
/**
 * Whether `Resampler` can go from one rate to the other (both in Hz).
 * @param {number} inputRate
 * @param {number} outputRate
 */
export declare function canResample(inputRate: number, outputRate: number): boolean;
export declare class Resampler {
    #private;
    /**
     * @param {number} inputRate in Hz
     * @param {number} outputRate in Hz
     * @throws {RangeError} where `canResample` is false
     */
    constructor(inputRate: number, outputRate: number);
    /** The filter's group delay, in input samples. */
    get delaySamples(): number;
    /**
     * Takes the next samples of the stream, and returns the output that they complete.
     * @param {Float32Array} input
     * @returns {Float32Array}
     */
    process(input: Float32Array): Float32Array;
    /**
     * How many input samples `process` needs next to give at least `count` output samples.
     * @param {number} count
     */
    inputNeededFor(count: number): number;
}
export type Cut = {
    itemId: string;
    contentIndex: number;
    playedMs: number;
};
export type Segment = {
    itemId: string;
    contentIndex: number;
    chunks: Int16Array[];
    /**
     * samples of the first chunk that were pulled
     */
    offset: number;
    /**
     * samples of the whole segment that were pulled
     */
    pulled: number;
    /**
     * no more will come
     */
    finished: boolean;
};
export type JitterOptions = {
    prerollMs?: number;
    maxPrerollMs?: number;
    capacityMs?: number;
};
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
export declare class JitterBuffer {
    #private;
    /** @param {JitterOptions} [options] */
    constructor({ prerollMs, maxPrerollMs, capacityMs }?: JitterOptions);
    get bufferedMs(): number;
    /** How often the buffer ran empty in the middle of an item. */
    get underruns(): number;
    get droppedMs(): number;
    /** Whether an item was pushed that has not been played to its end. */
    get busy(): boolean;
    /**
     * Adds samples at 24 kHz. Samples beyond the capacity are dropped and counted.
     * @param {string} itemId
     * @param {number} contentIndex
     * @param {Int16Array} samples
     */
    push(itemId: string, contentIndex: number, samples: Int16Array): void;
    /**
     * Marks an item as complete, so that its end does not count as a stall.
     * @param {string} itemId
     */
    finish(itemId: string): void;
    /**
     * Fills `output` with the next samples as floats, and with silence where the buffer is empty.
     * @param {Float32Array} output
     * @returns {number} how many samples were sound
     */
    pull(output: Float32Array): number;
    /**
     * Drops all that waits.
     * @param {number} [unheardSamples] pulled already, but not heard yet
     * @returns {Cut[]} the items cut short, in their order
     */
    clear(unheardSamples?: number): Cut[];
}
export type PlaybackCommand = {
    type: "push";
    itemId: string;
    contentIndex: number;
    pcm: Int16Array;
} | {
    type: "finish";
    itemId: string;
} | {
    type: "clear";
    request: number;
    unheardMs: number;
} | {
    type: "stop";
};
export type PlaybackEvent = {
    type: "cleared";
    request: number;
    cuts: Cut[];
} | {
    type: "sounding";
    sounding: boolean;
    underruns: number;
};
