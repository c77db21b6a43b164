/** Where the plans of a session come from, and what it is known by: its id, its token and its agent. */

import { BrokerError } from "./broker.js";
import { isDegraded, readPlan } from "./plan.js";

/** @typedef {import("./plan.js").Plan} Plan */

export class PlanSource {
  sessionToken = "";
  /** @type {string | undefined} */
  sessionId;
  /** @type {string | undefined} */
  agentId;
  /** An agent that the next plan is asked for, and that the broker may not know. @type {string | undefined} */
  wantedAgentId;
  #broker;
  #options;
  #onUnknownAgent;

  /**
   * @param {import("./broker.js").Broker} broker
   * @param {import("./session-options.js").TalkOptions} options
   * @param {(error: BrokerError) => void} onUnknownAgent  the plan is asked for the agent before
   */
  constructor(broker, options, onUnknownAgent) {
    this.#broker = broker;
    this.#options = options;
    this.#onUnknownAgent = onUnknownAgent;
    this.sessionId = options.sessionId;
    this.agentId = options.agentId;
  }

  /**
   * @param {AbortSignal} signal
   * @returns {Promise<Plan>} the next plan, of the same session
   * @throws {BrokerError}
   */
  async next(signal) {
    const { userId, transports, microphone = true } = this.#options;
    const { sessionId, sessionToken } = this;
    const request = { agentId: this.wantedAgentId ?? this.agentId, sessionId, sessionToken, userId };
    let body;
    try {
      body = await this.#broker.requestPlan(request, signal);
    } catch (error) {
      const isUnknown = error instanceof BrokerError && error.code === "unknown_agent";
      if (!isUnknown || this.wantedAgentId === undefined || !sessionToken) throw error;
      this.#onUnknownAgent(error);
      this.wantedAgentId = undefined;
      body = await this.#broker.requestPlan({ ...request, agentId: this.agentId }, signal);
    }
    const plan = readPlan(body, performance.now(), transports, microphone);
    if (!plan) {
      const message = "The voice service offers no way to connect that this page can use.";
      throw new BrokerError("no_way", message, { retryable: isDegraded(body) });
    }
    this.sessionId = plan.sessionId;
    this.sessionToken = plan.sessionToken;
    this.agentId = plan.agentId || request.agentId;
    if (this.wantedAgentId === this.agentId) this.wantedAgentId = undefined;
    return plan;
  }
}
