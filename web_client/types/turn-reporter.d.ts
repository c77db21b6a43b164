/**
 * Brings turns to the memory in their order, and keeps each until the broker has acknowledged it.
 *
 * One turn at a time while the page lives; when it closes, all that is left at once, as far as the 64 KiB go that the
 * browser lets `keepalive` requests of a page have in flight together.
 */
export type Turn = import("./conversation.js").Turn;
export type TurnReport = {
    turn: Turn;
    agentId: string;
    sessionId: string;
    /**
     * of the plan whose connection the turn belongs to: its epoch orders the turn
     */
    sessionToken: string;
};
export type Post = (report: TurnReport, options: {
    keepalive: boolean;
}) => Promise<void>;
export type ReporterOptions = {
    post: Post;
    /**
     * a turn that the broker will never take
     */
    onLost: (report: TurnReport, error: unknown) => void;
    /**
     * may end early
     */
    sleep?: (ms: number) => Promise<void>;
    random?: () => number;
};
/**
 * @typedef {import("./conversation.js").Turn} Turn
 *
 * @typedef {object} TurnReport
 * @property {Turn} turn
 * @property {string} agentId
 * @property {string} sessionId
 * @property {string} sessionToken  of the plan whose connection the turn belongs to: its epoch orders the turn
 *
 * @typedef {(report: TurnReport, options: {keepalive: boolean}) => Promise<void>} Post
 *   Resolves when acknowledged; rejects with an error whose `retryable` and `retryAfterMs` are obeyed.
 *
 * @typedef {object} ReporterOptions
 * @property {Post} post
 * @property {(report: TurnReport, error: unknown) => void} onLost   a turn that the broker will never take
 * @property {(ms: number) => Promise<void>} [sleep]  may end early
 * @property {() => number} [random]
 */
export declare const KEEPALIVE_BUDGET_BYTES = 60000;
export declare class TurnReporter {
    #private;
    /** @param {ReporterOptions} options */
    constructor({ post, onLost, sleep, random }: ReporterOptions);
    /** Turns not acknowledged yet. */
    get pending(): number;
    /**
     * Queues a turn. Where the broker has been away for so long that the queue is full, the oldest is given up, loudly.
     * @param {TurnReport} report
     */
    enqueue(report: TurnReport): void;
    /** When all that is queued has been acknowledged or given up. */
    drained(): Promise<void>;
    /** The page is closing: sends what is left, without waiting for one another's answers. */
    flushOnClose(): void;
}
