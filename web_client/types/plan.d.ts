/** A plan, as the broker answers it: checked field by field, since a page acts upon it. Pure. */
export type TransportName = "webrtc" | "webrtc_relay" | "websocket" | "websocket_proxy";
export type Connection = {
    transport: TransportName;
    url: string;
    /**
     * what goes into the Authorization header
     */
    token: string | null;
    /**
     * what goes into the WebSocket handshake
     */
    protocols: string[];
    /**
     * from the plan's arrival on
     */
    expiresInS: number;
};
export type Plan = {
    sessionId: string;
    sessionToken: string;
    agentId: string;
    /**
     * nothing could be minted
     */
    degraded: boolean;
    /**
     * in the order to try
     */
    connections: Connection[];
    /**
     * on the page's own monotonic clock
     */
    receivedAtMs: number;
};
/**
 * @typedef {"webrtc" | "webrtc_relay" | "websocket" | "websocket_proxy"} TransportName
 *
 * @typedef {object} Connection
 * @property {TransportName} transport
 * @property {string} url
 * @property {string | null} token        what goes into the Authorization header
 * @property {string[]} protocols         what goes into the WebSocket handshake
 * @property {number} expiresInS          from the plan's arrival on
 *
 * @typedef {object} Plan
 * @property {string} sessionId
 * @property {string} sessionToken
 * @property {string} agentId
 * @property {boolean} degraded           nothing could be minted
 * @property {Connection[]} connections   in the order to try
 * @property {number} receivedAtMs        on the page's own monotonic clock
 */
/** @type {readonly TransportName[]} */
export declare const TRANSPORTS: readonly TransportName[];
/**
 * @param {any} body the answer's JSON
 * @param {number} nowMs on a monotonic clock
 * @param {readonly string[] | null} [wanted] the transports that may be used; null is all
 * @returns {Plan | null} null where there is nothing to connect to
 */
export declare function readPlan(body: any, nowMs: number, wanted?: readonly string[] | null): Plan | null;
/**
 * Whether a token may be used in a page: short-lived by its own word, and not in the shape of a key.
 * @param {Connection} connection
 */
export declare function isEphemeral({ transport, token, protocols, expiresInS }: Connection): boolean;
