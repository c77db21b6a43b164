/** WebRTC whose offer goes through the broker: for networks and tokens that Azure's own endpoint refuses. */
import { WebRtcTransport } from "./webrtc.js";
export type TransportContext = import("./transport.js").TransportContext;
/** @typedef {import("./transport.js").TransportContext} TransportContext */
/**
 * @param {TransportContext} context
 * @returns {WebRtcTransport}
 */
export declare function createRelayTransport(context: TransportContext): WebRtcTransport;
