/** Waits that end: a promise of the browser's may never settle, whatever its specification says. */

/** A wait was too long. */
export class TooLate extends Error {
  constructor() {
    super("it took too long");
    this.name = "TooLate";
  }
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
export async function within(promise, ms, signal, late = () => new TooLate()) {
  promise.catch(() => undefined); // nobody waits for it after the end
  signal?.throwIfAborted();
  /** @type {(() => void)[]} */
  const undo = [];
  const end = new Promise((_, reject) => {
    const timer = setTimeout(() => reject(late()), ms);
    const leave = () => reject(signal?.reason);
    signal?.addEventListener("abort", leave);
    undo.push(() => clearTimeout(timer), () => signal?.removeEventListener("abort", leave));
  });
  try {
    return await Promise.race([promise, /** @type {Promise<never>} */ (end)]);
  } finally {
    for (const step of undo) step();
  }
}
