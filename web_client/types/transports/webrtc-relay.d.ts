/** WebRTC whose offer travels through the broker: for networks, or tokens, that Azure's own route refuses. */
import { WebRtcTransport } from "./webrtc.js";
export type TransportContext = import("./transport.js").TransportContext;
/** @typedef {import("./transport.js").TransportContext} TransportContext */
/**
 * @param {TransportContext} context
 * @returns {WebRtcTransport}
 */
export declare function createRelayTransport(context: TransportContext): WebRtcTransport;
