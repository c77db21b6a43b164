/**
 * Records what is said: lines for the screen, and turns for the memory where nobody else reports them. Each connection
 * has a conversation of its own. What is incomplete when the connection ends is kept as well.
 */

import { Conversation } from "./conversation.js";
import { TurnReporter } from "./turn-reporter.js";

/**
 * @typedef {import("./conversation.js").Line} Line
 * @typedef {import("./conversation.js").Turn} Turn
 * @typedef {import("./events.js").Signal} Signal
 *
 * @typedef {object} TurnContext  The session that turns belong to, and the token that authorises reporting them.
 * @property {string} sessionId
 * @property {string} sessionToken
 * @property {string} agentId
 * @property {boolean} reports  false where the broker hears each turn
 */

const LAST_TURNS_MS = 500;

export class TranscriptRecorder {
  #broker;
  #reporter;
  #onLine;
  #conversation = new Conversation();
  /** @type {TurnContext | null} */
  #context = null;

  /**
   * @param {import("./broker.js").Broker} broker
   * @param {{onLine: (line: Line) => void, onLost: () => void}} listener
   */
  constructor(broker, { onLine, onLost }) {
    this.#broker = broker;
    this.#onLine = onLine;
    this.#reporter = new TurnReporter({ post: (report, options) => broker.reportTurn(report, options), onLost });
  }

  /**
   * A connection is live.
   * @param {TurnContext} context
   */
  begin(context) {
    this.#context = context;
  }

  /** The connection is over: reports the turns that waited, and sends what was being said to the memory. */
  end() {
    const { turns, partial } = this.#conversation.close();
    this.#conversation = new Conversation();
    this.#report(turns);
    const context = this.#context;
    if (context?.reports && partial.length > 0) {
      this.#broker.enrich(partial.map((turn) => ({ turn, ...context }))).catch(() => undefined); // best effort: these words are not a whole turn
    }
    this.#context = null;
  }

  /** @param {Signal} signal */
  handle(signal) {
    if (signal.kind === "agent_switched" && this.#context) this.#context = { ...this.#context, agentId: signal.agentId };
    this.#publish(this.#conversation.apply(signal));
  }

  /**
   * @param {string} itemId
   * @param {string} words
   */
  typed(itemId, words) {
    this.#publish(this.#conversation.typed(itemId, words));
  }

  /** @param {import("./audio/worklets.js").Cut[] | null} cuts null where only the peer knows what was cut */
  interrupted(cuts) {
    this.#publish(this.#conversation.interrupted(cuts ?? undefined));
  }

  /** Resolves when all turns are acknowledged, or after half a second. */
  async settled() {
    if (this.#reporter.pending === 0) return;
    await Promise.race([this.#reporter.drained(), new Promise((resolve) => setTimeout(resolve, LAST_TURNS_MS))]);
  }

  /** The page closes: sends the last turns. */
  flushOnClose() {
    this.end();
    this.#reporter.flushOnClose();
  }

  /** @param {import("./conversation.js").ConversationUpdate} update */
  #publish({ lines, turns }) {
    for (const line of lines) this.#onLine(line);
    this.#report(turns);
  }

  /** @param {Turn[]} turns */
  #report(turns) {
    const context = this.#context;
    if (context?.reports) for (const turn of turns) this.#reporter.enqueue({ turn, ...context });
  }
}
