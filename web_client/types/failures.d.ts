/** What went wrong outside of a connection, in the session machine's words. */
export type Failure = import("./session-machine.js").Failure;
/** @typedef {import("./session-machine.js").Failure} Failure */
/**
 * What asking for a plan came to: no microphone to talk with, or no plan.
 * @param {unknown} error
 * @returns {import("./session-machine.js").Event}
 */
export declare function planFailed(error: unknown): import("./session-machine.js").Event;
/**
 * A fault of the page's own. Another connection may not have it; a reload may mend it.
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
