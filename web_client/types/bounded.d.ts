/** Waits that end: a promise of the browser's may never settle, whatever its specification says. */
/** A wait was too long. */
export declare class TooLate extends Error {
    constructor();
}
/**
 * Waits for `promise` until `ms` have passed or `signal` is aborted.
 * @template T
 * @param {Promise<T>} promise
 * @param {number} ms
 * @param {AbortSignal} [signal]
 * @param {() => Error} [late] makes the error of a timeout
 * @returns {Promise<T>}
 */
export declare function within<T>(promise: Promise<T>, ms: number, signal?: AbortSignal, late?: () => Error): Promise<T>;
