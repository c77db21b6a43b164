/**
 * What waits to be heard, and how much of it was. No audio API in here: the playback worklet pulls from it.
 *
 * The server sends faster than real time, but a network stalls: sound starts once a little is in hand (the preroll),
 * and after each stall waits for twice as much, up to a limit.
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
    /** Times that sound broke off in the middle of an item. */
    get underruns(): number;
    get droppedMs(): number;
    /** Whether something was given that has not been heard to its end. */
    get busy(): boolean;
    /**
     * Adds samples at 24 kHz; what does not fit into the capacity is dropped, and counted.
     * @param {string} itemId
     * @param {number} contentIndex
     * @param {Int16Array} samples
     */
    push(itemId: string, contentIndex: number, samples: Int16Array): void;
    /**
     * Says that an item is complete, so that its end is no stall.
     * @param {string} itemId
     */
    finish(itemId: string): void;
    /**
     * Fills `output` with what is to be heard next, as floats; silence where there is nothing.
     * @param {Float32Array} output
     * @returns {number} how many samples were sound
     */
    pull(output: Float32Array): number;
    /**
     * Silences all that waits.
     * @param {number} [unheardSamples] pulled already, but still on its way to the ear
     * @returns {Cut[]} the items cut short, in their order
     */
    clear(unheardSamples?: number): Cut[];
}
