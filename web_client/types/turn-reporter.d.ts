/**
 * Reports turns to the broker in order, and keeps each until the broker has acknowledged it.
 *
 * It sends one turn at a time while the page is open. When the page closes it sends the rest at once, within the 64 KiB
 * that browsers allow a page's `keepalive` requests to have in flight together.
 */
export type Turn = import("./conversation.js").Turn;
export type TurnReport = {
    turn: Turn;
    agentId: string;
    sessionId: string;
    /**
     * of the plan whose connection the turn belongs to; its epoch orders the turn
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
 * @property {string} sessionToken  of the plan whose connection the turn belongs to; its epoch orders the turn
 *
 * @typedef {(report: TurnReport, options: {keepalive: boolean}) => Promise<void>} Post
 *   Resolves when acknowledged; rejects with an error whose `retryable` and `retryAfterMs` are honoured.
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
     * Queues a turn. If the queue is full, the oldest turn is dropped and `onLost` is called.
     * @param {TurnReport} report
     */
    enqueue(report: TurnReport): void;
    /** Resolves when every queued turn has been acknowledged or dropped. */
    drained(): Promise<void>;
    /** The page is closing: sends all queued turns at once. */
    flushOnClose(): void;
}
