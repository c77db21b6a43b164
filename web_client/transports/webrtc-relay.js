/** WebRTC whose offer goes through the broker: for networks and tokens that Azure's own endpoint refuses. */

import { failure } from "./transport.js";
import { WebRtcTransport } from "./webrtc.js";

/** @typedef {import("./transport.js").TransportContext} TransportContext */

/**
 * @param {TransportContext} context
 * @returns {WebRtcTransport}
 */
export function createRelayTransport(context) {
  return new WebRtcTransport(context, relayExchange(context));
}

/**
 * @param {TransportContext} context
 * @returns {import("./webrtc.js").Exchange}
 */
function relayExchange({ connection: { url, token } }) {
  const authorization = { Authorization: `Bearer ${token}` };
  return async (offer, signal) => {
    let answer;
    try {
      const headers = { "Content-Type": "application/sdp", ...authorization };
      answer = await fetch(url, { method: "POST", headers, body: offer, signal, redirect: "error" });
    } catch {
      signal.throwIfAborted();
      throw failure("sdp_refused", "The voice service can't be reached.");
    }
    if (!answer.ok) throw failure("sdp_refused", `The voice service could not place the call (${answer.status}).`);
    const location = answer.headers.get("Location");
    const hangUp = () => {
      if (!location) return;
      const call = new URL(location, url);
      // Best effort: a call whose media has stopped also ends by itself.
      fetch(call, { method: "DELETE", headers: authorization, keepalive: true }).catch(() => undefined);
    };
    return { answer: await answer.text(), hangUp };
  };
}
