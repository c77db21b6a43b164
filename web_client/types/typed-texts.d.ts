/**
 * Typed texts, and whether each has its answer. Azure refuses a question while it answers another one, and a connection
 * may break between question and answer: each text is asked about once, when that is possible, and is not forgotten before.
 *
 * Straight from Azure a page gets a part of the events alone, without the start and the end of answers, and without
 * errors. There an answer runs from its first words to its transcript, and its end at Azure is given a moment.
 */
export type Signal = import("./events.js").Signal;
/** @typedef {import("./events.js").Signal} Signal */
/** Longer texts fit neither a data channel of every browser nor the broker's limit of a message, with JSON around them. */
export declare const MAX_TEXT_BYTES = 60000;
export declare class TypedTexts {
    #private;
    /**
     * @param {object} options
     * @param {(event: object) => void} options.send
     * @param {() => void} options.interrupt  stops the answer that runs
     * @param {"interrupt" | "queue"} options.whileAnswering  what a text does to the answer that runs
     * @param {(work: () => void, ms: number) => void} [options.later]
     */
    constructor({ send, interrupt, whileAnswering, later }: {
        send: (event: object) => void;
        interrupt: () => void;
        whileAnswering: "interrupt" | "queue";
        later?: (work: () => void, ms: number) => void;
    });
    /**
     * Sends a text, and asks for its answer as soon as no other runs.
     * @param {string} itemId
     * @param {string} words
     */
    say(itemId: string, words: string): void;
    /**
     * @param {Signal} signal
     * @returns {boolean} whether the signal concerns nobody else: a refusal that was expected
     */
    handle(signal: Signal): boolean;
    /** The talk goes on over a new connection, which does not know what had no answer yet. */
    reconnected(): void;
    /** The talk is over. Returns the texts that were never answered, and forgets them. */
    end(): string[];
}
