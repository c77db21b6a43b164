/** Reads the broker's plan, and checks every field: the page connects where the plan says. Pure. */
export type TransportName = "webrtc" | "webrtc_relay" | "websocket" | "websocket_proxy";
export type Connection = {
    transport: TransportName;
    url: string;
    /**
     * for the Authorization header
     */
    token: string | null;
    /**
     * for the WebSocket handshake
     */
    protocols: string[];
    /**
     * counted from the plan's arrival
     */
    expiresInS: number;
    /**
     * the Azure resource that it leads to, where the plan names one
     */
    resource: string | null;
};
export type Plan = {
    sessionId: string;
    sessionToken: string;
    agentId: string;
    /**
     * no strategy minted a token
     */
    degraded: boolean;
    /**
     * poor: Azure is known to be down, and no connection is worth trying
     */
    outlook: "good" | "poor";
    /**
     * of a poor plan: when to ask for the next one
     */
    retryAfterMs: number;
    /**
     * in the order to try; a poor plan may have none
     */
    connections: Connection[];
    /**
     * on the page's monotonic clock
     */
    receivedAtMs: number;
};
/**
 * @typedef {"webrtc" | "webrtc_relay" | "websocket" | "websocket_proxy"} TransportName
 *
 * @typedef {object} Connection
 * @property {TransportName} transport
 * @property {string} url
 * @property {string | null} token        for the Authorization header
 * @property {string[]} protocols         for the WebSocket handshake
 * @property {number} expiresInS          counted from the plan's arrival
 * @property {string | null} resource     the Azure resource that it leads to, where the plan names one
 *
 * @typedef {object} Plan
 * @property {string} sessionId
 * @property {string} sessionToken
 * @property {string} agentId
 * @property {boolean} degraded           no strategy minted a token
 * @property {"good" | "poor"} outlook    poor: Azure is known to be down, and no connection is worth trying
 * @property {number} retryAfterMs        of a poor plan: when to ask for the next one
 * @property {Connection[]} connections   in the order to try; a poor plan may have none
 * @property {number} receivedAtMs        on the page's monotonic clock
 */
/** @type {readonly TransportName[]} */
export declare const TRANSPORTS: readonly TransportName[];
/**
 * @param {any} body the answer's JSON
 * @param {number} nowMs on a monotonic clock
 * @param {readonly string[] | null} [wanted] the transports that may be used; null is all
 * @returns {Plan | null} null where there is nothing to connect to, unless the plan says that Azure is down
 */
export declare function readPlan(body: any, nowMs: number, wanted?: readonly string[] | null): Plan | null;
/**
 * Whether no strategy minted a token: what is missing from such a plan may be in the next one.
 * @param {any} body the answer's JSON
 */
export declare function isDegraded(body: any): boolean;
/**
 * Whether a page may use the connection's token: it expires soon, and does not look like a long-lived key.
 * @param {Connection} connection
 */
export declare function isEphemeral({ transport, token, protocols, expiresInS }: Connection): boolean;
/** @param {unknown} seconds */
export declare function retryAfterMs(seconds: unknown): number;
