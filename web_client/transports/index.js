/** Creates the transport for a plan's connection. */

import { createRelayTransport } from "./webrtc-relay.js";
import { WebRtcTransport } from "./webrtc.js";
import { WebSocketTransport } from "./websocket.js";

/**
 * @param {import("./transport.js").TransportContext} context
 * @returns {import("./transport.js").Transport}
 */
export function createTransport(context) {
  switch (context.connection.transport) {
    case "webrtc":
      return new WebRtcTransport(context);
    case "webrtc_relay":
      return createRelayTransport(context);
    case "websocket":
    case "websocket_proxy":
      return new WebSocketTransport(context);
  }
}
