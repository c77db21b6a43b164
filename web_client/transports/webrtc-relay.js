/** WebRTC whose offer travels through the broker: for networks, or tokens, that Azure's own route refuses. */

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
      // Best effort: the call also ends by itself, since its media has stopped.
      fetch(call, { method: "DELETE", headers: authorization, keepalive: true }).catch(() => undefined);
    };
    return { answer: await answer.text(), hangUp };
  };
}
