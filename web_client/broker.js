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
 *
 * @typedef {object} BrokerOptions  How the page proves to the broker who its user is, where the broker asks for that.
 * @property {(options: {refresh: boolean}) => string | Promise<string>} [getToken]
 *   The user's token for the broker, such as Entra's. It is asked for before each plan, first of all; with `refresh` when
 *   the broker did not take the last one: then the token must be a new one.
 * @property {Record<string, string> | (() => Record<string, string>)} [headers]  more headers for every request to the broker
 * @property {RequestCredentials} [credentials]  `include` sends the cookies of a sign-in on the broker's own address
 * @property {typeof globalThis.fetch} [fetch]  in place of the browser's, for requests to the broker
 * @property {(request: PlanRequest & {signal: AbortSignal}) => Promise<unknown>} [getPlan]
 *   Gets the plan from the page's own backend, which asks the broker. Then no request for a plan goes to the broker.
 */

/** A sign-in may show a window, which is a person's time. */
const TOKEN_TIMEOUT_MS = 120_000;
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
  #options;
  #fetch;
  #hinted = false;
  /** The user's token that `signIn` has got. @type {string | undefined} */
  #token;

  /**
   * @param {string} brokerUrl where the broker is, such as `https://voice.example.com`
   * @param {BrokerOptions} [options]
   */
  constructor(brokerUrl, options = {}) {
    this.#base = brokerUrl.replace(/\/+$/, "");
    this.#options = options;
    this.#fetch = options.fetch ?? ((...request) => globalThis.fetch(...request));
  }

  /**
   * Asks for the user's token ahead of the next plan: inside a click, where a page may open a window for signing in.
   * @param {AbortSignal} signal
   * @throws {BrokerError} with the code `sign_in_required`
   */
  async signIn(signal) {
    const { getPlan, getToken } = this.#options;
    if (getToken && !getPlan) this.#token = await this.#askToken(getToken, false, signal);
  }

  /**
   * Asks for a plan.
   * @param {PlanRequest} request
   * @param {AbortSignal} [signal]
   * @returns {Promise<unknown>} the answer's JSON; `readPlan` checks it
   * @throws {BrokerError} with the code `sign_in_required` where the user has to sign in first
   */
  async requestPlan(request, signal = new AbortController().signal) {
    const { getPlan, getToken } = this.#options;
    if (getPlan) return this.#planOf(getPlan, request, signal);
    const first = getToken && (this.#token ?? (await this.#askToken(getToken, false, signal)));
    this.#token = undefined;
    try {
      return await this.#requestPlan(request, first, signal);
    } catch (error) {
      if (!getToken || !(error instanceof BrokerError) || error.code !== "sign_in_required") throw error;
      const second = await this.#askToken(getToken, true, signal);
      if (second === first) throw error; // asking again would change nothing
      return this.#requestPlan(request, second, signal);
    }
  }

  /**
   * @param {NonNullable<BrokerOptions["getPlan"]>} getPlan
   * @param {PlanRequest} request
   * @param {AbortSignal} signal
   */
  async #planOf(getPlan, request, signal) {
    const late = new BrokerError("timeout", "This site took too long to begin the talk.", { retryable: true });
    try {
      return await within(Promise.resolve(getPlan({ ...request, signal })), PLAN_TIMEOUT_MS, signal, () => late);
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof BrokerError) throw error;
      console.error(error);
      throw new BrokerError("plan_unavailable", "This site can't begin the talk now. Try again in a moment.", { retryable: true });
    }
  }

  /**
   * @param {PlanRequest} request
   * @param {string | undefined} token the user's
   * @param {AbortSignal} signal
   */
  async #requestPlan({ agentId, sessionId, sessionToken, userId }, token, signal) {
    const body = { agent_id: agentId, session_id: sessionId, user_id: userId, modalities: ["audio", "text"] };
    /** @type {Record<string, string>} */
    const headers = { "Content-Type": "application/json" };
    if (token) headers.Authorization = `Bearer ${token}`;
    if (sessionToken) headers["X-Session-Token"] = sessionToken;
    const init = { method: "POST", headers, body: JSON.stringify(body) };
    return readJson(await this.#ask("/api/v1/voice/realtime/token", init, PLAN_TIMEOUT_MS, signal));
  }

  /**
   * @param {NonNullable<BrokerOptions["getToken"]>} getToken
   * @param {boolean} refresh
   * @param {AbortSignal} signal
   * @returns {Promise<string>} without "Bearer" in front
   */
  async #askToken(getToken, refresh, signal) {
    let token;
    try {
      token = await within(Promise.resolve(getToken({ refresh })), TOKEN_TIMEOUT_MS, signal);
    } catch (error) {
      signal.throwIfAborted();
      console.error(error);
      throw signInRequired(0);
    }
    const bare = typeof token === "string" ? token.trim().replace(/^bearer\s+/i, "") : "";
    if (!/^[\x21-\x7e]+$/.test(bare)) throw signInRequired(0);
    return bare;
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

  /**
   * Reports what the page has measured of a talk.
   * @param {import("./talk-reporter.js").TalkReport} report
   * @param {string} sessionToken
   */
  async reportTalk(report, sessionToken) {
    await this.#ask("/api/v1/voice/realtime/report", { ...postJson(report, sessionToken), keepalive: true }, POST_TIMEOUT_MS);
  }

  /** The broker's status: agents, strategies, backlog. */
  async status() {
    return readJson(await this.#ask("/api/v1/voice/status", { headers: { Accept: "application/json" } }, POST_TIMEOUT_MS));
  }

  /**
   * Sends a request to the broker in the way that the page's options say.
   * @param {string | URL} url
   * @param {RequestInit} init
   */
  async request(url, init) {
    const { headers, credentials = "same-origin" } = this.#options;
    const more = typeof headers === "function" ? headers() : headers;
    return this.#fetch(url, {
      ...init,
      headers: { ...more, .../** @type {Record<string, string>} */ (init.headers) },
      credentials,
      redirect: "manual", // to a page for signing in; a script sees no more of it than that it was one
    });
  }

  /** Browsers don't tell a page that its origin is refused, so its developer gets a hint, once. */
  #hintAtOrigin() {
    const origin = globalThis.location?.origin;
    if (this.#hinted || !origin || new URL(this.#base, origin).origin === origin || navigator.onLine === false) return;
    this.#hinted = true;
    console.warn(`voice-session: the broker can't be reached from ${origin}. Does its BROKER_ALLOWED_ORIGINS list that origin?`);
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
      const asked = this.request(this.#base + path, { ...init, signal: ending.signal, cache: "no-store" });
      answer = await within(asked, timeoutMs, signal, () => late);
    } catch (error) {
      ending.abort();
      signal?.throwIfAborted();
      if (error === late) throw late;
      this.#hintAtOrigin();
      throw globalThis.navigator?.onLine === false
        ? new BrokerError("offline", "You are offline. Connect to a network, then try again.", { retryable: true })
        : new BrokerError("unreachable", "The voice service can't be reached. Check your connection.", { retryable: true });
    } finally {
      signal?.removeEventListener("abort", end);
    }
    if (answer.status === 401 || isPage(answer)) throw signInRequired(answer.status);
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

/** @param {number} status */
function signInRequired(status) {
  return new BrokerError("sign_in_required", "Sign in, then press Talk again.", { status });
}

/**
 * Whether a page for signing in came, or a redirect to one, where the broker's JSON was due.
 * @param {Response} answer
 */
function isPage(answer) {
  if (answer.type === "opaqueredirect" || (answer.status >= 300 && answer.status < 400)) return true;
  return answer.ok && (answer.headers.get("Content-Type") ?? "").startsWith("text/html");
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
  if (status === 403) return "You may not do this. Sign in as somebody who may.";
  if (status === 429) return "Too many requests. Wait a moment, and try again.";
  return status >= 500 ? "The voice service is in trouble. Try again in a moment." : "The voice service refused the request.";
}

/** @param {unknown} value */
function asText(value) {
  return typeof value === "string" && value !== "" ? value : null;
}
