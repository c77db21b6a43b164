/**
 * Reports what the page measures of its talk to the broker's metrics: how long it took to be live, how long the user waited
 * for answers, WebRTC's statistics, and transports that failed. Nothing waits for a report, and none is worth an error.
 */

import { within } from "./bounded.js";

/**
 * @typedef {import("./plan.js").TransportName} TransportName
 *
 * @typedef {object} MediaStatistics
 * @property {number | null} rttMs
 * @property {number | null} jitterMs
 * @property {number | null} lost  packets since the connection began
 *
 * @typedef {object} Link
 * @property {TransportName} transport
 * @property {(() => Promise<MediaStatistics | null>) | undefined} statistics
 * @property {number} lost  as reported
 *
 * @typedef {object} TalkReport
 * @property {string} session_id
 * @property {TransportName} transport
 * @property {number} [live_after_ms]
 * @property {{turn_ms: number}[]} [turns]
 * @property {{rtt_ms: number | null, jitter_ms: number | null, lost: number | null}} [rtc]
 * @property {{transport: TransportName, reason: string}[]} [failures]
 *
 * @typedef {object} TalkReporterOptions
 * @property {(report: TalkReport, sessionToken: string) => Promise<void>} post
 * @property {number} [everyMs]
 */

const EVERY_MS = 60_000;
const STATISTICS_MS = 1_000;
const MAX_TURNS = 100;
const MAX_FAILURES = 20;
/** What the broker takes for possible; more is a clock that stood still, such as a laptop's that slept. */
const LONGEST_TURN_MS = 120_000;
const LONGEST_START_MS = 600_000;

export class TalkReporter {
  #post;
  #everyMs;
  #sessionId = "";
  #sessionToken = "";
  /** The live connection. @type {Link | null} */
  #link = null;
  /** @type {Promise<unknown>} */
  #sending = Promise.resolve();
  /** @type {number | null} */
  #liveAfterMs = null;
  /** @type {{turn_ms: number}[]} */
  #turns = [];
  /** @type {{transport: TransportName, reason: string}[]} */
  #failures = [];
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #timer;
  /** The broker has no such route: it is older than this client. */
  #isUnknown = false;

  /** @param {TalkReporterOptions} options */
  constructor({ post, everyMs = EVERY_MS }) {
    this.#post = post;
    this.#everyMs = everyMs;
  }

  /**
   * The session that reports are about from now on.
   * @param {string} sessionId
   * @param {string} sessionToken
   */
  about(sessionId, sessionToken) {
    this.#sessionId = sessionId;
    this.#sessionToken = sessionToken;
  }

  /**
   * A connection is live.
   * @param {TransportName} transport
   * @param {number | null} liveAfterMs  of a talk's first connection
   * @param {(() => Promise<MediaStatistics | null>) | undefined} statistics
   */
  begin(transport, liveAfterMs, statistics) {
    this.#link = { transport, statistics, lost: 0 };
    if (liveAfterMs !== null && liveAfterMs <= LONGEST_START_MS) this.#liveAfterMs = Math.round(liveAfterMs);
    clearInterval(this.#timer);
    this.#timer = setInterval(() => void (this.#link && this.#send(this.#link)), this.#everyMs);
  }

  /** @param {number} turnMs */
  turn(turnMs) {
    if (turnMs <= LONGEST_TURN_MS && this.#turns.length < MAX_TURNS) this.#turns.push({ turn_ms: turnMs });
  }

  /**
   * @param {TransportName} transport
   * @param {string} reason
   */
  failed(transport, reason) {
    if (this.#failures.length < MAX_FAILURES) this.#failures.push({ transport, reason });
  }

  /**
   * The connection ends; call it before it is closed. Resolves when its report has been sent, or was not taken.
   * @param {{isLast?: boolean}} [options]  the talk ends as well: failures are told even if nothing came about after them
   */
  async end({ isLast = false } = {}) {
    clearInterval(this.#timer);
    if (this.#link) this.#sending = Promise.all([this.#sending, this.#send(this.#link)]); // statistics are read at once
    this.#link = null;
    await this.#sending;
    const failed = this.#failures.at(-1)?.transport;
    if (isLast && failed && !this.#link) await this.#deliver({ transport: failed, statistics: undefined, lost: 0 }, null);
  }

  /** The page closes: sends what is there at once, without statistics. */
  flushOnClose() {
    clearInterval(this.#timer);
    if (this.#link) void this.#deliver(this.#link, null);
    this.#link = null;
  }

  /** @param {Link} link */
  async #send(link) {
    let media = null;
    try {
      if (link.statistics) media = await within(link.statistics(), STATISTICS_MS);
    } catch {
      // a connection that breaks has none
    }
    await this.#deliver(link, media);
  }

  /**
   * @param {Link} link
   * @param {MediaStatistics | null} media
   */
  async #deliver(link, media) {
    const [turns, failures, liveAfterMs] = [this.#turns, this.#failures, this.#liveAfterMs];
    if (this.#isUnknown || !this.#sessionToken) return;
    if (turns.length === 0 && failures.length === 0 && liveAfterMs === null && media === null) return;
    this.#turns = [];
    this.#failures = [];
    this.#liveAfterMs = null;
    /** @type {TalkReport} */
    const report = { session_id: this.#sessionId, transport: link.transport };
    if (liveAfterMs !== null) report.live_after_ms = liveAfterMs;
    if (turns.length > 0) report.turns = turns;
    if (failures.length > 0) report.failures = failures;
    if (media) {
      const lost = media.lost === null ? null : Math.max(0, media.lost - link.lost);
      report.rtc = { rtt_ms: media.rttMs, jitter_ms: media.jitterMs, lost };
      link.lost = Math.max(link.lost, media.lost ?? 0);
    }
    try {
      await this.#post(report, this.#sessionToken);
    } catch (error) {
      const { status = 0, retryable = true } = /** @type {{status?: number, retryable?: boolean}} */ (error);
      this.#isUnknown = status === 404 || status === 405;
      if (!retryable) return;
      this.#turns = [...turns, ...this.#turns].slice(0, MAX_TURNS); // with the next one
      this.#failures = [...failures, ...this.#failures].slice(0, MAX_FAILURES);
      this.#liveAfterMs ??= liveAfterMs;
    }
  }
}
