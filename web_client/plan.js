/** Reads the broker's plan, and checks every field: the page connects where the plan says. Pure. */

/**
 * @typedef {"webrtc" | "webrtc_relay" | "webrtc_websocket" | "websocket" | "websocket_proxy"} TransportName
 *
 * @typedef {object} Connection
 * @property {TransportName} transport
 * @property {string} url
 * @property {string | null} token        for the Authorization header
 * @property {string[]} protocols         for the WebSocket handshake
 * @property {number} expiresInS          counted from the plan's arrival
 * @property {string} dialect             whose events it carries: `ga`, `preview` or `live`
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
export const TRANSPORTS = ["webrtc", "webrtc_relay", "webrtc_websocket", "websocket", "websocket_proxy"];
/** Those that lead to the broker, with a token or a ticket of its own. */
const BROKERS = ["webrtc_relay", "webrtc_websocket", "websocket_proxy"];

const MAX_LIFE_S = 86_400;
/** What a poor plan without a usable `retry_after_s` means, and the limits of one that has it. */
const RETRY_AFTER_MS = { unnamed: 5_000, least: 1_000, most: 60_000 };

/** Shapes of credentials that a page must never hold: resource keys, OpenAI keys, Entra tokens (JWTs). */
const LONG_LIVED = [/^[0-9a-f]{32}$/i, /^[A-Za-z0-9]{84}$/, /^sk-/, /^eyJ[\w-]+\.[\w-]+\.[\w-]*$/];

/**
 * @param {any} body the answer's JSON
 * @param {number} nowMs on a monotonic clock
 * @param {readonly string[] | null} [wanted] the transports that may be used; null is all
 * @param {boolean} [speaks]  false: the user types, which GPT-Live takes over the proxy alone
 * @returns {Plan | null} null where there is nothing to connect to, unless the plan says that Azure is down
 */
export function readPlan(body, nowMs, wanted = null, speaks = true) {
  if (!isText(body?.session_id) || !isText(body.session_token) || !Array.isArray(body.connections)) return null;
  const connections = body.connections
    .map(readConnection)
    .filter((/** @type {Connection | null} */ connection) => connection && (!wanted || wanted.includes(connection.transport)))
    .filter((/** @type {Connection} */ { dialect, transport }) => speaks || dialect !== "live" || transport === "websocket_proxy");
  const outlook = body.outlook === "poor" ? "poor" : "good";
  if (connections.length === 0 && outlook === "good") return null;
  return {
    sessionId: body.session_id,
    sessionToken: body.session_token,
    agentId: isText(body.agent_id) ? body.agent_id : "",
    degraded: isDegraded(body),
    outlook,
    retryAfterMs: outlook === "poor" ? retryAfterMs(body.retry_after_s) : 0,
    connections,
    receivedAtMs: nowMs,
  };
}

/**
 * Whether no strategy minted a token: what is missing from such a plan may be in the next one.
 * @param {any} body the answer's JSON
 */
export function isDegraded(body) {
  return body?.degraded === true;
}

/**
 * Whether a page may use the connection's token: it expires soon, and does not look like a long-lived key.
 * @param {Connection} connection
 */
export function isEphemeral({ transport, token, protocols, expiresInS }) {
  if (!(expiresInS <= MAX_LIFE_S)) return false;
  if (BROKERS.includes(transport)) return true;
  const secrets = token === null ? protocols.filter((name) => name.startsWith(KEY_PROTOCOL)) : [token];
  return secrets.length > 0 && secrets.every((secret) => !looksLongLived(secret.replace(KEY_PROTOCOL, "")));
}

const KEY_PROTOCOL = "openai-insecure-api-key.";

/** @param {string} secret */
function looksLongLived(secret) {
  return secret === "" || LONG_LIVED.some((shape) => shape.test(secret));
}

/**
 * @param {any} raw
 * @returns {Connection | null} null for one that this client can't use
 */
function readConnection(raw) {
  if (!TRANSPORTS.includes(raw?.transport) || !isText(raw.url)) return null;
  const protocols = Array.isArray(raw.protocols) ? raw.protocols.filter(isText) : [];
  const token = isText(raw.token) ? raw.token : null;
  const webSocket = raw.transport.includes("websocket");
  if (!isSecure(raw.url, webSocket ? ["wss:", "ws:"] : ["https:", "http:"])) return null;
  if (webSocket ? protocols.length === 0 : token === null) return null;
  const expiresInS = Number.isFinite(raw.expires_in_s) ? raw.expires_in_s : Infinity;
  const resource = isText(raw.resource) ? raw.resource : null;
  const dialect = isText(raw.dialect) ? raw.dialect : "ga";
  return { transport: raw.transport, url: raw.url, token, protocols, expiresInS, dialect, resource };
}

/** @param {unknown} seconds */
export function retryAfterMs(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds)) return RETRY_AFTER_MS.unnamed;
  return Math.min(RETRY_AFTER_MS.most, Math.max(RETRY_AFTER_MS.least, Math.ceil(seconds * 1000)));
}

/**
 * Whether a URL is encrypted, on loopback, or on the page's own host.
 * @param {string} url
 * @param {string[]} schemes the encrypted one first
 */
function isSecure(url, [encrypted, plain]) {
  if (!URL.canParse(url)) return false;
  const { protocol, hostname, host } = new URL(url);
  if (protocol === encrypted) return true;
  return protocol === plain && (isLoopback(hostname) || host === globalThis.location?.host);
}

/** @param {string} hostname */
function isLoopback(hostname) {
  return hostname === "localhost" || hostname === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(hostname);
}

/** @param {unknown} value @returns {value is string} */
function isText(value) {
  return typeof value === "string" && value !== "";
}
