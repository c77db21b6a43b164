/**
 * The interface of all transports. A transport carries one connection: it is opened once, and replaced by a new one when
 * it is lost. It does not decide what comes next; `session-machine.js` does.
 */

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
 * @property {(url: string | URL, init: RequestInit) => Promise<Response>} request  sends a request to the broker
 * @property {(signal: Signal) => void} onSignal
 * @property {(event: object) => void} [onEvent]  each event as it came
 * @property {import("../events.js").Dialect} [dialect]  the Realtime API's without it
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
 * @property {number} [largestMessageBytes]  What the peer takes at once, where that is less than the broker does.
 * @property {boolean} reportsTurns  Whether the page must report turns, because the broker does not see them.
 * @property {boolean} [repeatsTurns]  Whether it reports them all the same: the broker may not hear each, and keeps each once.
 * @property {boolean} switchesAgents  Whether `broker.agent.switch` is understood.
 * @property {boolean} [isMeasured]  The broker tells how long the user waits for answers, and the page does not measure.
 * @property {() => void} [listenForCalls]  The page has tools: called once the transport is open, and with each new tool.
 * @property {boolean} [noText]  Typed text is not taken.
 * @property {boolean} [noImages]  Images are not taken.
 * @property {import("../call-events.js").CallName | null} [call]  of the call, where there is one whose name is known
 * @property {() => Promise<import("../talk-reporter.js").MediaStatistics | null>} [statistics]  How well the media travels.
 * @property {() => void} close  Closes at once; no callback is called after it.
 */

/** A connection that could not be opened. */
export class ConnectionFailure extends Error {
  /** @param {Failure} failure */
  constructor(failure) {
    super(failure.message);
    this.name = "ConnectionFailure";
    this.failure = failure;
  }
}

/**
 * @param {import("../session-machine.js").FailureCode} code
 * @param {string} message
 * @param {Omit<Partial<Failure>, "code" | "message">} [more]
 * @returns {ConnectionFailure}
 */
export function failure(code, message, more = {}) {
  return new ConnectionFailure({ code, message, ...more });
}
