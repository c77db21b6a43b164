/** All transports, in a module that pages load while the broker makes their first plan. */

import { WebRtcTransport } from "./webrtc.js";
import { WebRtcWebSocketTransport } from "./webrtc-websocket.js";
import { WebSocketTransport } from "./websocket.js";

/**
 * @param {import("./transport.js").TransportContext} context
 * @returns {import("./transport.js").Transport} of the kind that the connection names
 * @throws {import("./transport.js").ConnectionFailure} where the browser does not have it
 */
export function transportFor(context) {
  switch (context.connection.transport) {
    case "webrtc":
    case "webrtc_relay":
      return new WebRtcTransport(context);
    case "webrtc_websocket":
      return new WebRtcWebSocketTransport(context);
    default:
      return new WebSocketTransport(context);
  }
}
