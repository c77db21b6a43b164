/**
 * What all ways to Azure have in common. A transport carries one connection: it is opened once, and when it is gone
 * another is made. It decides nothing about what comes next; `session-machine.js` does.
 */

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

/**
 * Waits for `promise`, but no longer than `ms`, and not beyond `signal`.
 * @template T
 * @param {Promise<T>} promise
 * @param {number} ms
 * @param {AbortSignal} signal
 * @param {() => Error} late what is thrown when time is up
 * @returns {Promise<T>}
 */
export async function within(promise, ms, signal, late) {
  signal.throwIfAborted();
  /** @type {(() => void)[]} */
  const undo = [];
  const end = new Promise((_, reject) => {
    const timer = setTimeout(() => reject(late()), ms);
    const leave = () => reject(signal.reason);
    signal.addEventListener("abort", leave);
    undo.push(() => clearTimeout(timer), () => signal.removeEventListener("abort", leave));
  });
  try {
    return await Promise.race([promise, /** @type {Promise<never>} */ (end)]);
  } finally {
    for (const step of undo) step();
  }
}
