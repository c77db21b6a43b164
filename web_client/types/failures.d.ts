/** Failures outside of a connection, as events of the session machine. */
export type Failure = import("./session-machine.js").Failure;
/** @typedef {import("./session-machine.js").Failure} Failure */
/**
 * The event for a plan request that failed: for want of a microphone, or of a plan.
 * @param {unknown} error
 * @returns {import("./session-machine.js").Event}
 */
export declare function planFailed(error: unknown): import("./session-machine.js").Event;
/**
 * A failure in the page's own code. Another connection may not have it; a reload may repair it.
 * @param {unknown} error
 * @returns {Failure}
 */
export declare function pageFault(error: unknown): Failure;
/**
 * @param {string} code
 * @param {string} message
 */
export declare function errorWithCode(code: string, message: string): Error & {
    code: string;
};
