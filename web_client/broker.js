/** A client of the broker's HTTP routes. Every request has a timeout; every failure is a `BrokerError`. */

import { within } from "./bounded.js";

/**
 * @typedef {import("./turn-reporter.js").TurnReport} TurnReport
 *
 * @typedef {object} PlanRequest
 * @property {string} [agentId]
 * @property {string} [sessionId]
 * @property {string} [sessionToken]  the session's last one, to resume it
 * @property {string} [userId]
 */

const PLAN_TIMEOUT_MS = 10_000;
const POST_TIMEOUT_MS = 10_000;
const BODY_TIMEOUT_MS = 5_000;
const MAX_RETRY_AFTER_MS = 60_000;

/** A request to the broker that failed. `message` says what to do. */
export class BrokerError extends Error {
  /**
   * @param {string} code stable; the broker's own, or `unreachable`, `timeout`
   * @param {string} message
   * @param {{status?: number, retryable?: boolean, retryAfterMs?: number, correlationId?: string}} [details]
   */
  constructor(code, message, { status = 0, retryable = false, retryAfterMs = 0, correlationId = "" } = {}) {
    super(message);
    this.name = "BrokerError";
    this.code = code;
    this.status = status;
    this.retryable = retryable;
    this.retryAfterMs = retryAfterMs;
    this.correlationId = correlationId;
  }
}

export class Broker {
  #base;
  #fetch;

  /**
   * @param {string} brokerUrl where the broker is, such as `https://voice.example.com`
   * @param {typeof globalThis.fetch} [fetch]
   */
  constructor(brokerUrl, fetch = (...request) => globalThis.fetch(...request)) {
    this.#base = brokerUrl.replace(/\/+$/, "");
    this.#fetch = fetch;
  }

  /**
   * Asks for a plan.
   * @param {PlanRequest} request
   * @param {AbortSignal} [signal]
   * @returns {Promise<unknown>} the answer's JSON; `readPlan` checks it
   */
  async requestPlan({ agentId, sessionId, sessionToken, userId }, signal) {
    const body = { agent_id: agentId, session_id: sessionId, user_id: userId, modalities: ["audio", "text"] };
    /** @type {Record<string, string>} */
    const headers = { "Content-Type": "application/json" };
    if (sessionToken) headers["X-Session-Token"] = sessionToken;
    const init = { method: "POST", headers, body: JSON.stringify(body) };
    const answer = await this.#ask("/api/v1/voice/realtime/token", init, PLAN_TIMEOUT_MS, signal);
    return readJson(answer);
  }

  /**
   * Reports a turn; resolves once it is durable.
   * @param {TurnReport} report
   * @param {{keepalive?: boolean}} [options]
   */
  async reportTurn({ turn, agentId, sessionId, sessionToken }, { keepalive = false } = {}) {
    const body = {
      session_id: sessionId,
      agent_id: agentId,
      role: turn.role,
      content: turn.content,
      turn_id: turn.turnId,
      sequence: turn.sequence,
      created_at: turn.createdAt,
      interrupted: turn.interrupted,
    };
    const init = { ...postJson(body, sessionToken), keepalive };
    await this.#ask("/api/v1/voice/conversation/turn", init, POST_TIMEOUT_MS);
  }

  /**
   * Sends incomplete turns to the memory: what was being said when a talk broke off.
   * @param {TurnReport[]} reports of one session, at most 100
   */
  async enrich(reports) {
    const transcripts = reports.map(({ turn, agentId, sessionId }) => ({
      text: turn.content,
      session_id: sessionId,
      speaker: turn.role,
      agent_id: agentId,
      channel: "voice",
      turn_id: turn.turnId,
    }));
    const init = { ...postJson({ transcripts }, reports[0].sessionToken), keepalive: true };
    await this.#ask("/api/v1/memory/enrich", init, POST_TIMEOUT_MS);
  }

  /** The broker's status: agents, strategies, backlog. */
  async status() {
    return readJson(await this.#ask("/api/v1/voice/status", { headers: { Accept: "application/json" } }, POST_TIMEOUT_MS));
  }

  /**
   * @param {string} path
   * @param {RequestInit} init
   * @param {number} timeoutMs
   * @param {AbortSignal} [signal]
   * @returns {Promise<Response>}
   */
  async #ask(path, init, timeoutMs, signal) {
    const ending = new AbortController(); // `AbortSignal.any` is younger than some browsers
    const end = () => ending.abort(signal?.reason);
    if (signal?.aborted) end();
    signal?.addEventListener("abort", end);
    const late = new BrokerError("timeout", "The voice service took too long to answer.", { retryable: true });
    let answer;
    try {
      const asked = this.#fetch(this.#base + path, { ...init, signal: ending.signal, cache: "no-store" });
      answer = await within(asked, timeoutMs, signal, () => late);
    } catch (error) {
      ending.abort();
      signal?.throwIfAborted();
      if (error === late) throw late;
      throw globalThis.navigator?.onLine === false
        ? new BrokerError("offline", "You are offline. Connect to a network, then try again.", { retryable: true })
        : new BrokerError("unreachable", "The voice service can't be reached. Check your connection.", { retryable: true });
    } finally {
      signal?.removeEventListener("abort", end);
    }
    if (answer.ok) return answer;
    throw await readProblem(answer);
  }
}

/**
 * What proves a session to the broker. A platform in front of it may put a Bearer of its own into `Authorization`; then the
 * other header counts.
 * @param {string | null} token the session token
 * @returns {Record<string, string>}
 */
export function sessionHeaders(token) {
  return token ? { Authorization: `Bearer ${token}`, "X-Session-Token": token } : {};
}

/**
 * Milliseconds of a `Retry-After` in seconds or as a date; at most a minute.
 * @param {string | null} header
 * @param {number} [now]
 */
export function retryAfterMs(header, now = Date.now()) {
  if (!header) return 0;
  const ms = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - now;
  return Number.isFinite(ms) ? Math.max(0, Math.min(MAX_RETRY_AFTER_MS, ms)) : 0;
}

/** @param {Response} answer */
async function readProblem(answer) {
  const problem = await within(answer.json(), BODY_TIMEOUT_MS).catch(() => null);
  const { status } = answer;
  return new BrokerError(asText(problem?.code) ?? `http_${status}`, asText(problem?.detail) ?? describe(status), {
    status,
    retryable: status >= 500 || status === 429 || status === 408,
    retryAfterMs: retryAfterMs(answer.headers.get("Retry-After")),
    correlationId: asText(problem?.correlation_id) ?? answer.headers.get("X-Request-ID") ?? "",
  });
}

/** @param {Response} answer */
async function readJson(answer) {
  try {
    return await within(answer.json(), BODY_TIMEOUT_MS);
  } catch {
    throw new BrokerError("unreadable", "The voice service's answer can't be read.", { status: answer.status, retryable: true });
  }
}

/**
 * @param {unknown} body
 * @param {string} token
 */
function postJson(body, token) {
  const headers = { "Content-Type": "application/json", ...sessionHeaders(token) };
  return { method: "POST", headers, body: JSON.stringify(body) };
}

/** @param {number} status */
function describe(status) {
  if (status === 401) return "Sign in, and try again.";
  if (status === 403) return "You may not do this. Sign in as somebody who may.";
  if (status === 429) return "Too many requests. Wait a moment, and try again.";
  return status >= 500 ? "The voice service is in trouble. Try again in a moment." : "The voice service refused the request.";
}

/** @param {unknown} value */
function asText(value) {
  return typeof value === "string" && value !== "" ? value : null;
}
