/**
 * The interface of all transports. A transport carries one connection: it is opened once, and replaced by a new one when
 * it is lost. It does not decide what comes next; `session-machine.js` does.
 */
export type Signal = import("../events.js").Signal;
export type Failure = import("../session-machine.js").Failure;
export type Connection = import("../plan.js").Connection;
export type AudioGraph = import("../audio/audio-graph.js").AudioGraph;
export type Cut = import("../audio/worklets.js").Cut;
export type TransportContext = {
    connection: Connection;
    audio: AudioGraph;
    onSignal: (signal: Signal) => void;
    /**
     * called once, after `open` has resolved; the transport is closed by then
     */
    onDropped: (failure: Failure) => void;
};
export type Transport = {
    /**
     *   Resolves when audio and events can go both ways. Rejects with a `ConnectionFailure`, or with the signal's reason.
     */
    open: (signal: AbortSignal) => Promise<void>;
    /**
     * An event of the Realtime API, or one of the broker's (proxy only).
     */
    send: (event: object) => void;
    /**
     *   Stops the playback at once, and cancels the answer. Resolves with the items that were cut, or with null where only
     *   the peer knows them.
     */
    interrupt: () => Promise<Cut[] | null>;
    /**
     *   As `interrupt`, for when Azure has detected the user's speech: it cancels the answer by itself.
     */
    yieldToUser: () => Promise<Cut[] | null>;
    /**
     *   Sends this microphone's sound instead of the one that was lost.
     */
    replaceMicrophone: (track: MediaStreamTrack) => Promise<void>;
    /**
     * Whether the page must report turns, because the broker does not see them.
     */
    reportsTurns: boolean;
    /**
     * Whether `broker.agent.switch` is understood.
     */
    switchesAgents: boolean;
    /**
     * Closes at once; no callback is called after it.
     */
    close: () => void;
};
/**
 * @typedef {import("../events.js").Signal} Signal
 * @typedef {import("../session-machine.js").Failure} Failure
 * @typedef {import("../plan.js").Connection} Connection
 * @typedef {import("../audio/audio-graph.js").AudioGraph} AudioGraph
 * @typedef {import("../audio/worklets.js").Cut} Cut
 *
 * @typedef {object} TransportContext
 * @property {Connection} connection
 * @property {AudioGraph} audio
 * @property {(signal: Signal) => void} onSignal
 * @property {(failure: Failure) => void} onDropped  called once, after `open` has resolved; the transport is closed by then
 *
 * @typedef {object} Transport
 * @property {(signal: AbortSignal) => Promise<void>} open
 *   Resolves when audio and events can go both ways. Rejects with a `ConnectionFailure`, or with the signal's reason.
 * @property {(event: object) => void} send  An event of the Realtime API, or one of the broker's (proxy only).
 * @property {() => Promise<Cut[] | null>} interrupt
 *   Stops the playback at once, and cancels the answer. Resolves with the items that were cut, or with null where only
 *   the peer knows them.
 * @property {() => Promise<Cut[] | null>} yieldToUser
 *   As `interrupt`, for when Azure has detected the user's speech: it cancels the answer by itself.
 * @property {(track: MediaStreamTrack) => Promise<void>} replaceMicrophone
 *   Sends this microphone's sound instead of the one that was lost.
 * @property {boolean} reportsTurns  Whether the page must report turns, because the broker does not see them.
 * @property {boolean} switchesAgents  Whether `broker.agent.switch` is understood.
 * @property {() => void} close  Closes at once; no callback is called after it.
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
