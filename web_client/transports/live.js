/** GPT-Live through the broker: over a WebSocket, and by WebRTC whose offer the broker takes to Azure. */

import { LiveDialect } from "../live-dialect.js";
import { CallSideband } from "./sideband.js";
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
  #context;
  #dialect;
  /** @type {CallSideband | null} */
  #sideband = null;

  /**
   * @param {TransportContext} context
   * @throws {import("./transport.js").ConnectionFailure} where the browser has no WebRTC
   */
  constructor(context) {
    const dialect = new LiveDialect({ overMedia: true });
    super({ ...context, dialect });
    this.reportsTurns = false; // the broker hears the call
    this.#context = context;
    this.#dialect = dialect;
  }

  /** The page has tools, whose calls come over a line of their own. */
  listenForCalls() {
    if (!this.call || this.#sideband) return;
    const { connection, onEvent, onSignal } = this.#context;
    this.#sideband = new CallSideband({
      ...{ url: connection.url, token: connection.token ?? "", callId: this.call.id },
      onCall: (text) => this.#dialect.read(text, onEvent, onSignal),
    });
  }

  /** @param {object} event */
  send(event) {
    const { type, item } = /** @type {import("../events.js").ServerEvent} */ (event);
    const isOutput = type === "conversation.item.create" && item.type === "function_call_output";
    if (!isOutput) return super.send(event);
    const written = this.#dialect.write(event);
    if (written) this.#sideband?.send(written);
  }

  close() {
    this.#sideband?.close();
    super.close();
  }

  /** Mutes the answer to its end, which the dialect tells. */
  async interrupt() {
    this.#context.audio.muteRemote(true);
    this.send({ type: "response.cancel" });
    return null;
  }

  async yieldToUser() {
    return [];
  }
}
