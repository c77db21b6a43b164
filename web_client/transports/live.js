/** GPT-Live through the broker: over a WebSocket, and by WebRTC whose offer the broker takes to Azure. */

import { LiveDialect } from "../live-dialect.js";
import { WebRtcTransport } from "./webrtc.js";
import { WebSocketTransport } from "./websocket.js";

/**
 * @typedef {import("./transport.js").TransportContext} TransportContext
 * @typedef {import("./transport.js").Transport} Transport
 */

/** @implements {Transport} */
export class LiveSocket extends WebSocketTransport {
  isMeasured = true;
  noImages = true;

  /** @param {TransportContext} context */
  constructor(context) {
    super({ ...context, dialect: new LiveDialect({ overMedia: false }) });
    this.switchesAgents = false; // another agent is another session, for which a new plan is made
    this.reportsTurns = false;
  }

  /** Silences the answer. A question that waits for its end is asked, whether or not one runs. */
  async interrupt() {
    const cutting = super.interrupt();
    this.send({ type: "response.cancel" });
    return cutting;
  }

  /** GPT-Live hears the user while it speaks, and stops by itself. */
  async yieldToUser() {
    return [];
  }
}

/** @implements {Transport} */
export class LiveCall extends WebRtcTransport {
  isMeasured = true;
  noImages = true;
  noText = true; // the data channel takes no questions
  #audio;

  /**
   * @param {TransportContext} context
   * @throws {import("./transport.js").ConnectionFailure} where the browser has no WebRTC
   */
  constructor(context) {
    super({ ...context, dialect: new LiveDialect({ overMedia: true }) });
    this.reportsTurns = false; // the broker hears the call
    this.#audio = context.audio;
  }

  /** Mutes the answer to its end, which the dialect tells. */
  async interrupt() {
    this.#audio.muteRemote(true);
    this.send({ type: "response.cancel" });
    return null;
  }

  async yieldToUser() {
    return [];
  }
}
