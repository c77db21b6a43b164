/**
 * The session's state machine: every decision about connecting, failing over and giving up, without I/O. `decide` takes
 * a state and an event, and returns the next state and the actions to take; `VoiceSession` performs them.
 *
 * | event                                                | action                                               |
 * |------------------------------------------------------|------------------------------------------------------|
 * | SDP refused or slow, token expired or not ephemeral  | the plan's next connection                           |
 * | ICE failed or not connected in time, channel dead    | the plan's WebSocket; WebRTC is left out from now on |
 * | the broker may not leave this call unseen            | a new plan, at once; only what the broker sees        |
 * | a ticket spent or expired, the broker draining       | a new plan, at once                                  |
 * | the plan's connections are used up, a talk dropped   | a new plan for the same session, after a jittered wait |
 * | the plan says that Azure is not reachable            | a new plan, when the plan says so                    |
 * | another agent, Azure's session limit is reached      | a new plan for the same session, at once             |
 * | a new plan has come because the limit is near        | its first connection, in place of the current one    |
 * | refused for good (agent, rights, origin, too many)   | failed; the loop stops                               |
 * | offline                                              | as above, but no attempt counts                      |
 */

/**
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {import("./plan.js").Connection} Connection
 *
 * @typedef {"sdp_refused" | "sdp_timeout" | "ice_failed" | "ice_timeout" | "channel_closed" | "token_expired"
 *   | "token_not_ephemeral" | "ticket_spent" | "socket_closed" | "socket_timeout" | "azure_dropped" | "draining"
 *   | "session_limit" | "not_reading" | "plan_failed" | "network_lost" | "azure_unavailable" | "not_verified"
 *   | "ended_by_agent" | "refused"} FailureCode
 *
 * @typedef {object} Failure
 * @property {FailureCode} code
 * @property {string} message       says what happened and what to do
 * @property {boolean} [fatal]      asking again cannot help
 * @property {string} [reportAs]    the stable code for the page, where `code` is too coarse
 * @property {number} [retryAfterMs]
 *
 * @typedef {object} Progress  What is known on the way to a connection.
 * @property {boolean} resume     the session was live before
 * @property {number} attempt     failed attempts since it was last live for STEADY_MS
 * @property {boolean} noWebRtc   WebRTC's media path is blocked, or broke off again and again
 * @property {boolean} onlySeen   the broker has to see the talk: no connection goes straight to Azure
 * @property {number} poorPlans   plans in a row that said that Azure is not reachable
 * @property {string} reason      why the first choice is not used
 *
 * @typedef {{name: "idle"}
 *   | {name: "requesting", progress: Progress}
 *   | {name: "connecting", progress: Progress, plan: Plan, index: number}
 *   | {name: "live", progress: Progress, plan: Plan, index: number, sinceMs: number}
 *   | {name: "waiting", progress: Progress, delayMs: number}
 *   | {name: "ended", reason: string}
 *   | {name: "failed", code: string, message: string}} State
 *
 * @typedef {{type: "talk"}
 *   | {type: "plan", plan: Plan}
 *   | {type: "plan_failed", failure: Failure}
 *   | {type: "opened"}
 *   | {type: "failed", failure: Failure}
 *   | {type: "dropped", failure: Failure}
 *   | {type: "move", reason: string}
 *   | {type: "replace", plan: Plan, reason: string}
 *   | {type: "wake"}
 *   | {type: "microphone_failed", failure: Failure}
 *   | {type: "hang_up", reason: string}} Event
 *
 * @typedef {{do: "request_plan"}
 *   | {do: "open", connection: Connection}
 *   | {do: "close"}
 *   | {do: "wait", delayMs: number}
 *   | {do: "report", code: string, message: string, retryable: boolean, retryAfterMs?: number}} Action
 *   `open` replaces the connection before.
 *
 * @typedef {{state: State, actions: Action[]}} Decision
 * @typedef {{nowMs: number, random: number, online?: boolean}} Moment
 *   A monotonic clock, a number in [0, 1) for jitter, and whether the browser believes to have a network (it does by default)
 */

export const FIRST_BACKOFF_MS = 500;
export const MAX_BACKOFF_MS = 8_000;
/** Attempts before giving up: for a first connection, and for a talk that was live. */
export const MAX_ATTEMPTS = { first: 4, resume: 12 };
/** Poor plans in a row before giving up. Each has its own wait, so it is minutes until then. */
export const MAX_POOR_PLANS = 20;
const EXPIRY_SLACK_S = 2;
/** A talk that was live for so long starts its count of attempts anew. Without it, one that flaps would never fail. */
const STEADY_MS = 10_000;

/** Codes after which WebRTC is not tried again: relayed signalling takes the same media path. */
const MEDIA_BLOCKED = new Set(["ice_failed", "ice_timeout", "channel_closed"]);
/** Codes of what concerns this talk alone, so that it may return at once. */
const OF_THIS_TALK = new Set([...MEDIA_BLOCKED, "session_limit", "not_verified"]);
/** Codes after which the plan is useless, and a new one is requested without a wait. */
const PLAN_SPENT = new Set(["ticket_spent", "draining"]);

/**
 * @param {State} state
 * @param {Event} event
 * @param {Moment} moment
 * @returns {Decision}
 */
export function decide(state, event, moment) {
  if (event.type === "hang_up") return hangUp(state, event.reason);
  if (event.type === "microphone_failed") return fail(event.failure);
  switch (state.name) {
    case "idle":
    case "ended":
    case "failed":
      return event.type === "talk" ? request(newProgress()) : unchanged(state);
    case "waiting":
      return event.type === "wake" ? request(state.progress) : unchanged(state);
    case "requesting":
      if (event.type === "plan" && event.plan.outlook === "poor") return waitForAzure(state.progress, event.plan, moment);
      if (event.type === "plan") return openFrom(event.plan, 0, firstReason(state.progress, event.plan), moment);
      if (event.type === "plan_failed") return retry(state.progress, event.failure, moment);
      if (event.type === "move") return move(state.progress, event.reason);
      return unchanged(state);
    case "connecting":
      if (event.type === "opened") return goLive(state, moment);
      if (event.type === "failed") return failOver(state, event.failure, moment);
      if (event.type === "move") return move(state.progress, event.reason);
      return unchanged(state);
    case "live":
      if (event.type === "dropped") return dropped(state, event.failure, moment);
      if (event.type === "move") return move(state.progress, event.reason);
      if (event.type === "replace" && event.plan.outlook !== "poor") {
        return openFrom(event.plan, 0, { ...state.progress, reason: event.reason }, moment);
      }
      return unchanged(state);
  }
}

/**
 * The state's public name.
 * @param {State} state
 * @returns {"idle" | "requesting" | "connecting" | "live" | "reconnecting" | "ended" | "failed"}
 */
export function publicName(state) {
  switch (state.name) {
    case "requesting":
    case "connecting":
      return state.progress.resume ? "reconnecting" : state.name;
    case "waiting":
      return state.progress.resume ? "reconnecting" : "requesting";
    default:
      return state.name;
  }
}

/** @returns {Progress} */
function newProgress() {
  return { resume: false, attempt: 0, noWebRtc: false, onlySeen: false, poorPlans: 0, reason: "first_choice" };
}

/**
 * @param {Progress} progress
 * @returns {Decision}
 */
function request(progress) {
  return { state: { name: "requesting", progress }, actions: [{ do: "request_plan" }] };
}

/**
 * @param {Progress} progress
 * @param {Plan} plan
 * @returns {Progress}
 */
function firstReason(progress, plan) {
  const reason = progress.reason === "first_choice" && plan.degraded ? "not_minted" : progress.reason;
  return { ...progress, reason, poorPlans: 0 };
}

/**
 * The plan is a poor one: opens nothing, and requests another plan after the wait that it names, and up to a quarter more,
 * since every page that was told so comes back. These waits are not failed attempts.
 * @param {Progress} progress
 * @param {Plan} plan
 * @param {Moment} moment
 * @returns {Decision}
 */
function waitForAzure(progress, plan, { random }) {
  const code = "azure_unavailable";
  const poorPlans = progress.poorPlans + 1;
  if (poorPlans > MAX_POOR_PLANS) {
    return fail({ code, message: "Azure has not been reachable for a while. Press Talk to try again." });
  }
  const delayMs = Math.round(plan.retryAfterMs * (1 + random / 4));
  const message = `Azure is not reachable now; we try again in ${Math.ceil(delayMs / 1000)} s.`;
  const told = { do: /** @type {const} */ ("report"), code, message, retryable: true, retryAfterMs: delayMs };
  return wait({ ...progress, poorPlans, reason: code }, delayMs, [{ do: "close" }, told]);
}

/**
 * Opens the first usable connection from `index` on.
 * @param {Plan} plan
 * @param {number} index
 * @param {Progress} progress
 * @param {Moment} moment
 * @returns {Decision}
 */
function openFrom(plan, index, progress, moment) {
  const connection = plan.connections[index];
  if (!connection) return retry(progress, { code: "plan_failed", message: "None of the ways to Azure worked." }, moment);
  const blocked = progress.noWebRtc && isWebRtc(connection) && !plan.connections.every(isWebRtc);
  if (blocked || (progress.onlySeen && !isSeen(connection))) return openFrom(plan, index + 1, progress, moment);
  if (moment.nowMs - plan.receivedAtMs > (connection.expiresInS - EXPIRY_SLACK_S) * 1000) {
    if (hasTicket(connection)) return replan(progress, "ticket_spent", moment);
    return openFrom(plan, index + 1, { ...progress, reason: "token_expired" }, moment);
  }
  return { state: { name: "connecting", progress, plan, index }, actions: [{ do: "open", connection }] };
}

/**
 * @param {Extract<State, {name: "connecting"}>} state
 * @param {Moment} moment
 * @returns {Decision}
 */
function goLive({ progress, plan, index }, { nowMs }) {
  return { state: { name: "live", progress: { ...progress, resume: true }, plan, index, sinceMs: nowMs }, actions: [] };
}

/**
 * A connection could not be opened.
 * @param {Extract<State, {name: "connecting"}>} state
 * @param {Failure} failure
 * @param {Moment} moment
 * @returns {Decision}
 */
function failOver({ progress, plan, index }, failure, moment) {
  if (failure.fatal) return fail(failure);
  if (PLAN_SPENT.has(failure.code)) return replan(progress, failure.code, moment);
  return openFrom(plan, index + 1, afterFailure(progress, failure), moment);
}

/**
 * A live connection broke off. It requests a new plan, whose epoch orders the later turns behind the earlier ones.
 * @param {Extract<State, {name: "live"}>} state
 * @param {Failure} failure
 * @param {Moment} moment
 * @returns {Decision}
 */
function dropped({ progress, plan, index, sinceMs }, failure, moment) {
  if (failure.code === "ended_by_agent") return { state: { name: "ended", reason: failure.code }, actions: [{ do: "close" }] };
  if (failure.fatal) return fail(failure);
  const learned = afterFailure(progress, failure);
  const steady = moment.nowMs - sinceMs >= STEADY_MS;
  if (!steady && progress.attempt > 0) {
    const flaps = isWebRtc(plan.connections[index]); // whatever ends it each time, the WebSocket may not have it
    return retry({ ...learned, noWebRtc: learned.noWebRtc || flaps }, failure, moment);
  }
  const next = { ...learned, attempt: 1 };
  // A broker that goes away drops all its talks at once, so that they must not return at once. A blocked path or the
  // session limit concerns this talk alone: no wait.
  const alone = OF_THIS_TALK.has(failure.code);
  return alone ? move(next, failure.code) : wait(next, jitter(FIRST_BACKOFF_MS / 2, moment), [{ do: "close" }]);
}

/**
 * Closes the connection, and requests a new plan at once.
 * @param {Progress} progress
 * @param {string} reason
 * @returns {Decision}
 */
function move(progress, reason) {
  const next = request({ ...progress, reason });
  return { state: next.state, actions: [{ do: "close" }, ...next.actions] };
}

/**
 * Requests a new plan because this one is used up: at once the first time, then after a wait.
 * @param {Progress} progress
 * @param {string} reason
 * @param {Moment} moment
 * @returns {Decision}
 */
function replan(progress, reason, moment) {
  if (progress.attempt === 0) return move({ ...progress, attempt: 1 }, reason);
  return retry({ ...progress, reason }, { code: "plan_failed", message: "The broker's tickets are not accepted." }, moment);
}

/**
 * @param {Progress} progress
 * @param {Failure} failure
 * @param {Moment} moment
 * @returns {Decision}
 */
function retry(progress, failure, moment) {
  if (moment.online === false && progress.resume && !failure.fatal) {
    // Without a network nothing can succeed: it is tried again now and then, in case that the browser is wrong.
    return wait(progress, jitter(MAX_BACKOFF_MS, moment), [{ do: "close" }]);
  }
  const attempt = progress.attempt + 1;
  const limit = progress.resume ? MAX_ATTEMPTS.resume : MAX_ATTEMPTS.first;
  if (failure.fatal || attempt >= limit) return fail(failure);
  const backoffMs = Math.min(MAX_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** (attempt - 1));
  const delayMs = Math.max(failure.retryAfterMs ?? 0, jitter(backoffMs, moment));
  return wait({ ...progress, attempt }, delayMs, [{ do: "close" }]);
}

/**
 * @param {Progress} progress
 * @param {number} delayMs
 * @param {Action[]} before
 * @returns {Decision}
 */
function wait(progress, delayMs, before) {
  return { state: { name: "waiting", progress, delayMs }, actions: [...before, { do: "wait", delayMs }] };
}

/**
 * @param {State} state
 * @param {string} reason
 * @returns {Decision}
 */
function hangUp(state, reason) {
  if (state.name === "idle" || state.name === "ended" || state.name === "failed") return unchanged(state);
  return { state: { name: "ended", reason }, actions: [{ do: "close" }] };
}

/**
 * @param {Failure} failure
 * @returns {Decision}
 */
function fail({ code, reportAs = code, message }) {
  return {
    state: { name: "failed", code: reportAs, message },
    actions: [{ do: "close" }, { do: "report", code: reportAs, message, retryable: false }],
  };
}

/**
 * @param {State} state
 * @returns {Decision}
 */
function unchanged(state) {
  return { state, actions: [] };
}

/**
 * @param {Progress} progress
 * @param {Failure} failure
 * @returns {Progress}
 */
function afterFailure(progress, { code }) {
  const noWebRtc = progress.noWebRtc || MEDIA_BLOCKED.has(code);
  return { ...progress, reason: code, noWebRtc, onlySeen: progress.onlySeen || code === "not_verified" };
}

/** @param {Connection} connection */
function isWebRtc({ transport }) {
  return transport.startsWith("webrtc");
}

/** @param {Connection} connection whose credential is good for one attempt */
function hasTicket({ transport }) {
  return transport === "websocket_proxy" || transport === "webrtc_websocket";
}

/** @param {Connection} connection that the broker sees, whatever Azure does */
function isSeen({ transport }) {
  return transport === "websocket_proxy" || transport === "webrtc_relay";
}

/**
 * Between half of `ms` and all of it.
 * @param {number} ms
 * @param {Moment} moment
 */
function jitter(ms, { random }) {
  return Math.round(ms * (0.5 + random / 2));
}
