/**
 * What all ways to Azure have in common. A transport carries one connection: it is opened once, and when it is gone
 * another is made. It decides nothing about what comes next; `session-machine.js` does.
 */
export type Signal = import("../events.js").Signal;
export type Failure = import("../session-machine.js").Failure;
export type Connection = import("../plan.js").Connection;
export type AudioGraph = import("../audio/audio-graph.js").AudioGraph;
export type Cut = import("../audio/jitter-buffer.js").Cut;
export type TransportContext = {
    connection: Connection;
    audio: AudioGraph;
    onSignal: (signal: Signal) => void;
    /**
     * once, after it was open; it is closed by then
     */
    onDropped: (failure: Failure) => void;
};
export type Transport = {
    /**
     *   Resolves when words can go both ways. Rejects with a `ConnectionFailure`, or with the signal's reason.
     */
    open: (signal: AbortSignal) => Promise<void>;
    /**
     * An event of the Realtime API, or one of the broker's (proxy only).
     */
    send: (event: object) => void;
    /**
     *   Stops what is heard, at once, and has the answer cancelled. The items that were cut; null where only the peer
     *   knows.
     */
    interrupt: () => Promise<Cut[] | null>;
    /**
     *   As `interrupt`, for when Azure has heard the user begin to speak, and does its part by itself.
     */
    yieldToUser: () => Promise<Cut[] | null>;
    /**
     *   The microphone was lost, and this is the new one.
     */
    replaceMicrophone: (track: MediaStreamTrack) => Promise<void>;
    /**
     * Whether the page has to report turns, since nobody else sees them.
     */
    reportsTurns: boolean;
    /**
     * Whether `broker.agent.switch` is understood.
     */
    switchesAgents: boolean;
    /**
     * Without further ado; nothing is told after it.
     */
    close: () => void;
};
/**
 * @typedef {import("../events.js").Signal} Signal
 * @typedef {import("../session-machine.js").Failure} Failure
 * @typedef {import("../plan.js").Connection} Connection
 * @typedef {import("../audio/audio-graph.js").AudioGraph} AudioGraph
 * @typedef {import("../audio/jitter-buffer.js").Cut} Cut
 *
 * @typedef {object} TransportContext
 * @property {Connection} connection
 * @property {AudioGraph} audio
 * @property {(signal: Signal) => void} onSignal
 * @property {(failure: Failure) => void} onDropped  once, after it was open; it is closed by then
 *
 * @typedef {object} Transport
 * @property {(signal: AbortSignal) => Promise<void>} open
 *   Resolves when words can go both ways. Rejects with a `ConnectionFailure`, or with the signal's reason.
 * @property {(event: object) => void} send  An event of the Realtime API, or one of the broker's (proxy only).
 * @property {() => Promise<Cut[] | null>} interrupt
 *   Stops what is heard, at once, and has the answer cancelled. The items that were cut; null where only the peer
 *   knows.
 * @property {() => Promise<Cut[] | null>} yieldToUser
 *   As `interrupt`, for when Azure has heard the user begin to speak, and does its part by itself.
 * @property {(track: MediaStreamTrack) => Promise<void>} replaceMicrophone
 *   The microphone was lost, and this is the new one.
 * @property {boolean} reportsTurns  Whether the page has to report turns, since nobody else sees them.
 * @property {boolean} switchesAgents  Whether `broker.agent.switch` is understood.
 * @property {() => void} close  Without further ado; nothing is told after it.
 */
/** A connection that could not be opened. */
export declare class ConnectionFailure extends Error {
    failure: import("../session-machine.js").Failure;
    /** @param {Failure} failure */
    constructor(failure: Failure);
}
/**
 * @param {import("../session-machine.js").FailureCode} code
 * @param {string} message
 * @param {Omit<Partial<Failure>, "code" | "message">} [more]
 * @returns {ConnectionFailure}
 */
export declare function failure(code: import("../session-machine.js").FailureCode, message: string, more?: Omit<Partial<Failure>, "code" | "message">): ConnectionFailure;
/**
 * Waits for `promise`, but no longer than `ms`, and not beyond `signal`.
 * @template T
 * @param {Promise<T>} promise
 * @param {number} ms
 * @param {AbortSignal} signal
 * @param {() => Error} late what is thrown when time is up
 * @returns {Promise<T>}
 */
export declare function within<T>(promise: Promise<T>, ms: number, signal: AbortSignal, late: () => Error): Promise<T>;
