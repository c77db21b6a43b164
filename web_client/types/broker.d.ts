/** A client of the broker's HTTP routes. Every request has a timeout; every failure is a `BrokerError`. */
export type TurnReport = import("./turn-reporter.js").TurnReport;
export type PlanRequest = {
    agentId?: string;
    sessionId?: string;
    /**
     * the session's last one, to resume it
     */
    sessionToken?: string;
    userId?: string;
};
export type BrokerOptions = {
    /**
     * The user's token for the broker, such as Entra's. It is asked for before each plan, first of all; with `refresh` when
     * the broker did not take the last one: then the token must be a new one.
     */
    getToken?: (options: {
        refresh: boolean;
    }) => string | Promise<string>;
    /**
     * more headers for every request to the broker
     */
    headers?: Record<string, string> | (() => Record<string, string>);
    /**
     * `include` sends the cookies of a sign-in on the broker's own address
     */
    credentials?: RequestCredentials;
    /**
     * in place of the browser's, for requests to the broker
     */
    fetch?: typeof globalThis.fetch;
    /**
     * Gets the plan from the page's own backend, which asks the broker. Then no request for a plan goes to the broker.
     */
    getPlan?: (request: PlanRequest & {
        signal: AbortSignal;
    }) => Promise<unknown>;
};
/** A request to the broker that failed. `message` says what to do. */
export declare class BrokerError extends Error {
    code: string;
    status: number;
    retryable: boolean;
    retryAfterMs: number;
    correlationId: string;
    /**
     * @param {string} code stable; the broker's own, or `unreachable`, `timeout`
     * @param {string} message
     * @param {{status?: number, retryable?: boolean, retryAfterMs?: number, correlationId?: string}} [details]
     */
    constructor(code: string, message: string, { status, retryable, retryAfterMs, correlationId }?: {
        status?: number;
        retryable?: boolean;
        retryAfterMs?: number;
        correlationId?: string;
    });
}
export declare class Broker {
    #private;
    /**
     * @param {string} brokerUrl where the broker is, such as `https://voice.example.com`
     * @param {BrokerOptions} [options]
     */
    constructor(brokerUrl: string, options?: BrokerOptions);
    /**
     * Asks for a plan.
     * @param {PlanRequest} request
     * @param {AbortSignal} [signal]
     * @returns {Promise<unknown>} the answer's JSON; `readPlan` checks it
     * @throws {BrokerError} with the code `sign_in_required` where the user has to sign in first
     */
    requestPlan(request: PlanRequest, signal?: AbortSignal): Promise<unknown>;
    /**
     * Reports a turn; resolves once it is durable.
     * @param {TurnReport} report
     * @param {{keepalive?: boolean}} [options]
     */
    reportTurn({ turn, agentId, sessionId, sessionToken }: TurnReport, { keepalive }?: {
        keepalive?: boolean;
    }): Promise<void>;
    /**
     * Sends incomplete turns to the memory: what was being said when a talk broke off.
     * @param {TurnReport[]} reports of one session, at most 100
     */
    enrich(reports: TurnReport[]): Promise<void>;
    /** The broker's status: agents, strategies, backlog. */
    status(): Promise<any>;
    /**
     * Sends a request to the broker in the way that the page's options say.
     * @param {string | URL} url
     * @param {RequestInit} init
     */
    request(url: string | URL, init: RequestInit): Promise<Response>;
}
/**
 * What proves a session to the broker. A platform in front of it may put a Bearer of its own into `Authorization`; then the
 * other header counts.
 * @param {string | null} token the session token
 * @returns {Record<string, string>}
 */
export declare function sessionHeaders(token: string | null): Record<string, string>;
/**
 * Milliseconds of a `Retry-After` in seconds or as a date; at most a minute.
 * @param {string | null} header
 * @param {number} [now]
 */
export declare function retryAfterMs(header: string | null, now?: number): number;
