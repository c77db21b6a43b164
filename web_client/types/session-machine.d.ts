/**
 * The session's state machine: every decision about connecting, failing over and giving up, without I/O. `decide` takes
 * a state and an event, and returns the next state and the actions to take; `VoiceSession` performs them.
 *
 * | event                                                | action                                               |
 * |------------------------------------------------------|------------------------------------------------------|
 * | SDP refused or slow, token expired or not ephemeral  | the plan's next connection                           |
 * | ICE failed or not connected in time, channel dead    | the plan's WebSocket; WebRTC is left out from now on |
 * | a ticket spent or expired, the broker draining       | a new plan, at once                                  |
 * | the plan's connections are used up, a talk dropped   | a new plan for the same session, after a jittered wait |
 * | the plan says that Azure is not reachable            | a new plan, when the plan says so                    |
 * | another agent, Azure's session limit is reached      | a new plan for the same session, at once             |
 * | a new plan has come because the limit is near        | its first connection, in place of the current one    |
 * | refused for good (agent, rights, origin, too many)   | failed; the loop stops                               |
 * | offline                                              | as above, but no attempt counts                      |
 */
export type Plan = import("./plan.js").Plan;
export type Connection = import("./plan.js").Connection;
export type FailureCode = "sdp_refused" | "sdp_timeout" | "ice_failed" | "ice_timeout" | "channel_closed" | "token_expired" | "token_not_ephemeral" | "ticket_spent" | "socket_closed" | "socket_timeout" | "azure_dropped" | "draining" | "session_limit" | "not_reading" | "plan_failed" | "network_lost" | "azure_unavailable" | "refused";
export type Failure = {
    code: FailureCode;
    /**
     * says what happened and what to do
     */
    message: string;
    /**
     * asking again cannot help
     */
    fatal?: boolean;
    /**
     * the stable code for the page, where `code` is too coarse
     */
    reportAs?: string;
    retryAfterMs?: number;
};
export type Progress = {
    /**
     * the session was live before
     */
    resume: boolean;
    /**
     * failed attempts since it was last live for STEADY_MS
     */
    attempt: number;
    /**
     * WebRTC's media path is blocked
     */
    noWebRtc: boolean;
    /**
     * plans in a row that said that Azure is not reachable
     */
    poorPlans: number;
    /**
     * why the first choice is not used
     */
    reason: string;
};
export type State = {
    name: "idle";
} | {
    name: "requesting";
    progress: Progress;
} | {
    name: "connecting";
    progress: Progress;
    plan: Plan;
    index: number;
} | {
    name: "live";
    progress: Progress;
    plan: Plan;
    index: number;
    sinceMs: number;
} | {
    name: "waiting";
    progress: Progress;
    delayMs: number;
} | {
    name: "ended";
    reason: string;
} | {
    name: "failed";
    code: string;
    message: string;
};
export type Event = {
    type: "talk";
} | {
    type: "plan";
    plan: Plan;
} | {
    type: "plan_failed";
    failure: Failure;
} | {
    type: "opened";
} | {
    type: "failed";
    failure: Failure;
} | {
    type: "dropped";
    failure: Failure;
} | {
    type: "move";
    reason: string;
} | {
    type: "replace";
    plan: Plan;
    reason: string;
} | {
    type: "wake";
} | {
    type: "microphone_failed";
    failure: Failure;
} | {
    type: "hang_up";
    reason: string;
};
export type Action = {
    do: "request_plan";
} | {
    do: "open";
    connection: Connection;
} | {
    do: "close";
} | {
    do: "wait";
    delayMs: number;
} | {
    do: "report";
    code: string;
    message: string;
    retryable: boolean;
    retryAfterMs?: number;
};
export type Decision = {
    state: State;
    actions: Action[];
};
export type Moment = {
    nowMs: number;
    random: number;
    online?: boolean;
};
/**
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {import("./plan.js").Connection} Connection
 *
 * @typedef {"sdp_refused" | "sdp_timeout" | "ice_failed" | "ice_timeout" | "channel_closed" | "token_expired"
 *   | "token_not_ephemeral" | "ticket_spent" | "socket_closed" | "socket_timeout" | "azure_dropped" | "draining"
 *   | "session_limit" | "not_reading" | "plan_failed" | "network_lost" | "azure_unavailable" | "refused"} FailureCode
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
 * @property {boolean} noWebRtc   WebRTC's media path is blocked
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
export declare const FIRST_BACKOFF_MS = 500;
export declare const MAX_BACKOFF_MS = 8000;
/** Attempts before giving up: for a first connection, and for a talk that was live. */
export declare const MAX_ATTEMPTS: {
    first: number;
    resume: number;
};
/** Poor plans in a row before giving up. Each has its own wait, so it is minutes until then. */
export declare const MAX_POOR_PLANS = 20;
/**
 * @param {State} state
 * @param {Event} event
 * @param {Moment} moment
 * @returns {Decision}
 */
export declare function decide(state: State, event: Event, moment: Moment): Decision;
/**
 * The state's public name.
 * @param {State} state
 * @returns {"idle" | "requesting" | "connecting" | "live" | "reconnecting" | "ended" | "failed"}
 */
export declare function publicName(state: State): "idle" | "requesting" | "connecting" | "live" | "reconnecting" | "ended" | "failed";
