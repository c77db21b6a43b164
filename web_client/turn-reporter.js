/**
 * Reports turns to the broker in order, and keeps each until the broker has acknowledged it.
 *
 * It sends one turn at a time while the page is open. When the page closes it sends the rest at once, within the 64 KiB
 * that browsers allow a page's `keepalive` requests to have in flight together.
 */

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

export const KEEPALIVE_BUDGET_BYTES = 60_000; // of 65,536: other code in the page may use some
const FRAME_BYTES = 400; // JSON around the words, ids included
const MAX_QUEUE = 500;
const FIRST_BACKOFF_MS = 250;
const MAX_BACKOFF_MS = 15_000;

export class TurnReporter {
  /** @type {TurnReport[]} */
  #queue = [];
  #post;
  #onLost;
  #sleep;
  #random;
  #keepaliveBytes = 0;
  /** @type {Promise<void> | null} */
  #pump = null;

  /** @param {ReporterOptions} options */
  constructor({ post, onLost, sleep = sleepFor, random = Math.random }) {
    this.#post = post;
    this.#onLost = onLost;
    this.#sleep = sleep;
    this.#random = random;
  }

  /** Turns not acknowledged yet. */
  get pending() {
    return this.#queue.length;
  }

  /**
   * Queues a turn. If the queue is full, the oldest turn is dropped and `onLost` is called.
   * @param {TurnReport} report
   */
  enqueue(report) {
    this.#queue.push(report);
    if (this.#queue.length > MAX_QUEUE) {
      const oldest = /** @type {TurnReport} */ (this.#queue.splice(1, 1)[0]); // the first is under way
      this.#onLost(oldest, new Error("the broker has been away for too long"));
    }
    this.#pump ??= this.#run().finally(() => {
      this.#pump = null;
    });
  }

  /** Resolves when every queued turn has been acknowledged or dropped. */
  async drained() {
    await this.#pump;
  }

  /** The page is closing: sends all queued turns at once. */
  flushOnClose() {
    for (const report of this.#queue.splice(0)) {
      if (!this.#fitsKeepalive(report)) continue; // the browser would refuse it
      this.#send(report, true).catch(() => undefined); // the page is gone: nobody handles it
    }
  }

  async #run() {
    let failures = 0;
    while (this.#queue.length > 0) {
      const report = this.#queue[0];
      try {
        await this.#send(report, this.#fitsKeepalive(report));
        failures = 0;
      } catch (error) {
        const { retryable = true, retryAfterMs = 0 } = /** @type {{retryable?: boolean, retryAfterMs?: number}} */ (error);
        if (retryable) {
          failures += 1;
          await this.#sleep(Math.max(retryAfterMs, this.#backoffMs(failures)));
          continue;
        }
        this.#onLost(report, error);
      }
      if (this.#queue[0] === report) this.#queue.shift();
    }
  }

  /**
   * @param {TurnReport} report
   * @param {boolean} keepalive
   */
  async #send(report, keepalive) {
    const bytes = keepalive ? sizeOf(report) : 0;
    this.#keepaliveBytes += bytes;
    try {
      await this.#post(report, { keepalive });
    } finally {
      this.#keepaliveBytes -= bytes;
    }
  }

  /** @param {TurnReport} report */
  #fitsKeepalive(report) {
    return this.#keepaliveBytes + sizeOf(report) <= KEEPALIVE_BUDGET_BYTES;
  }

  /** @param {number} failures */
  #backoffMs(failures) {
    const ms = Math.min(MAX_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** (failures - 1));
    return ms * (0.5 + this.#random() / 2);
  }
}

/** @param {TurnReport} report */
function sizeOf({ turn }) {
  return new TextEncoder().encode(JSON.stringify(turn.content)).length + FRAME_BYTES;
}

/** @param {number} ms */
function sleepFor(ms) {
  return new Promise((/** @type {(value: void) => void} */ resolve) => setTimeout(resolve, ms));
}
