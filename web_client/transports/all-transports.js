/**
 * All transports, in a module that pages load while the broker makes their first plan. What few brokers offer comes when a
 * plan names it.
 */

import { WebRtcTransport } from "./webrtc.js";
import { WebSocketTransport } from "./websocket.js";

/** @typedef {import("./transport.js").TransportContext} TransportContext */

const loadLive = () => import("./live.js");
const loadVoiceLive = () => import("./webrtc-websocket.js");

/**
 * Loads what these connections need, before one of them is opened.
 * @param {import("../plan.js").Connection[]} connections
 */
export async function loadFor(connections) {
  await Promise.all([
    connections.some(isLive) && loadLive(),
    connections.some(({ transport }) => transport === "webrtc_websocket") && loadVoiceLive(),
  ]);
}

/**
 * @param {TransportContext} context
 * @returns {Promise<import("./transport.js").Transport>} of the kind that the connection names
 * @throws {import("./transport.js").ConnectionFailure} where the browser does not have it
 */
export async function transportFor(context) {
  const { connection } = context;
  if (isLive(connection)) {
    const { LiveCall, LiveSocket } = await loadLive();
    return connection.transport.startsWith("websocket") ? new LiveSocket(context) : new LiveCall(context);
  }
  switch (connection.transport) {
    case "webrtc":
    case "webrtc_relay":
      return new WebRtcTransport(context);
    case "webrtc_websocket":
      return new (await loadVoiceLive()).WebRtcWebSocketTransport(context);
    default:
      return new WebSocketTransport(context);
  }
}

/** @param {import("../plan.js").Connection} connection */
function isLive({ dialect }) {
  return dialect === "live";
}
