/**
 * The jitter buffer: sound that waits to be played, and how far each item was played. It uses no audio API: the playback
 * worklet pulls from it.
 *
 * The server sends faster than real time, but networks stall. Playback starts once some sound is buffered (the preroll).
 * Each stall doubles the preroll, up to a limit.
 */
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
