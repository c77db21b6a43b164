/**
 * Replaces a live connection by another one, because Azure's limit is near or another agent is wanted. The current one is
 * used until there is a plan for the next, and longer where that plan is not usable.
 */

import { BrokerError } from "./broker.js";

/**
 * @typedef {import("./plan.js").Plan} Plan
 *
 * @typedef {object} ReplacementOptions
 * @property {(signal: AbortSignal) => Promise<Plan>} nextPlan
 * @property {import("./plan-source.js").PlanSource} source
 * @property {() => AbortSignal} connection  aborted when the current connection closes
 * @property {() => boolean} isQuiet  nobody speaks now
 * @property {(plan: Plan, reason: string) => void} onPlan
 * @property {(message: string) => void} onSwitchFailed
 */

/** Without a pause, the session moves on after so long. */
const AT_LATEST_MS = 90_000;
/** After so long a move is tried again that found no usable plan. */
const AGAIN_MS = 60_000;
const NO_AGENT = "The other agent can't be reached now. Try again in a moment.";

export class Replacement {
  /** The proxy connects the talk to Azure again: a move waits for that. */
  isHeld = false;
  #options;
  /** A plan is being requested. */
  #isAsking = false;
  #isDue = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {ReplacementOptions} options */
  constructor(options) {
    this.#options = options;
  }

  /** @param {number} ms after which Azure's limit is near */
  dueAfter(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.due(), ms);
  }

  /**
   * Azure's limit is near: moves at the next pause, or after `latestMs`.
   * @param {number} [latestMs]
   */
  due(latestMs = AT_LATEST_MS) {
    clearTimeout(this.#timer);
    this.#isDue = true;
    if (this.#options.isQuiet()) return void this.#move();
    this.#timer = setTimeout(() => void this.#move(), latestMs);
  }

  /** There is a pause: nobody speaks. */
  pause() {
    if (this.#isDue && this.#options.isQuiet()) void this.#move();
  }

  /** The connection is over. */
  end() {
    clearTimeout(this.#timer);
    this.#isDue = this.isHeld = false;
  }

  async #move() {
    if (this.#isAsking || this.isHeld) return; // after the hold it moves, or the proxy closes the socket
    this.#isAsking = true;
    const signal = this.#options.connection();
    const plan = await this.#options.nextPlan(signal).catch(() => null);
    this.#isAsking = false;
    if (signal.aborted) return;
    if (this.#options.source.wantedAgentId !== undefined) return this.switchAgent(); // wanted since it was asked for
    if (plan && plan.outlook !== "poor") return this.#options.onPlan(plan, "session_limit");
    this.#isDue = false;
    this.dueAfter(AGAIN_MS);
  }

  /** Takes the agent that the source wants. */
  async switchAgent() {
    const { source, nextPlan, onPlan, onSwitchFailed } = this.#options;
    if (this.#isAsking) return; // that plan is asked for again below, with this agent
    this.#isAsking = true;
    const signal = this.#options.connection();
    try {
      let plan;
      let asked;
      do {
        asked = source.wantedAgentId;
        plan = await nextPlan(signal);
      } while (source.wantedAgentId !== undefined && source.wantedAgentId !== asked);
      if (plan.agentId !== asked) return; // the broker does not know it: that is told already
      if (plan.outlook === "poor") onSwitchFailed(NO_AGENT);
      else onPlan(plan, "agent_switched");
    } catch (error) {
      if (signal.aborted) return;
      source.wantedAgentId = undefined;
      onSwitchFailed(error instanceof BrokerError ? error.message : NO_AGENT);
    } finally {
      this.#isAsking = false;
    }
  }
}
