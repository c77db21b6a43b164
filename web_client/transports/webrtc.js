/**
 * WebRTC: media goes straight between browser and Azure. The offer goes to Azure with the ephemeral token, or through the
 * broker (`webrtc_relay`) for networks and tokens that Azure's own endpoint refuses; the media path is the same.
 */

import { within } from "../bounded.js";
import { sessionHeaders } from "../broker.js";
import { REALTIME } from "../events.js";
import { Peer, SDP_TIMEOUT_MS, tooSlow } from "./peer.js";
import { failure } from "./transport.js";

/**
 * @typedef {import("./transport.js").TransportContext} TransportContext
 * @typedef {import("./transport.js").Transport} Transport
 *
 * @typedef {(offer: string, signal: AbortSignal) => Promise<{answer: string, hangUp: () => void, callId: string}>} Exchange
 *   Sends an SDP offer to Azure. Rejects with a `ConnectionFailure`.
 */

const CHANNEL_LABEL = "oai-events";

/** @implements {Transport} */
export class WebRtcTransport {
  reportsTurns = true;
  switchesAgents = false;
  #context;
  #dialect;
  #exchange;
  #peer;
  #open = false;
  #closed = false;
  #hangUp = () => {};
  /** The call's name, where the answer to the offer told it. @type {import("../call-events.js").CallName | null} */
  call = null;

  /**
   * @param {TransportContext} context
   * @throws {import("./transport.js").ConnectionFailure} where the browser has no WebRTC
   */
  constructor(context) {
    this.#context = context;
    this.#dialect = context.dialect ?? REALTIME;
    this.#exchange = context.connection.transport === "webrtc_relay" ? relayExchange(context) : directExchange(context);
    this.#peer = new Peer({
      audio: context.audio,
      label: CHANNEL_LABEL,
      onMessage: (data) => this.#dialect.read(data, context.onEvent, (signal) => this.#take(signal)),
      onLost: (reason) => this.#drop(reason),
    });
  }

  /** @param {AbortSignal} signal */
  async open(signal) {
    const offer = await this.#peer.offer(signal);
    const { answer, hangUp, callId } = await within(this.#exchange(offer, signal), SDP_TIMEOUT_MS, signal, tooSlow);
    this.#hangUp = hangUp;
    if (callId) this.call = { id: callId, isOurs: this.#context.connection.transport === "webrtc_relay" };
    if (this.#closed) return this.#hangUp(); // closed meanwhile
    await this.#peer.take(answer, signal);
    await this.#peer.connected(signal);
    this.#open = true;
    this.#peer.watch();
  }

  get largestMessageBytes() {
    return this.#peer.largestMessageBytes;
  }

  /** @param {object} event */
  send(event) {
    const written = this.#dialect.write(event);
    if (written) this.#peer.send(written);
  }

  /** @returns {Promise<import("./transport.js").Cut[] | null>} */
  async interrupt() {
    this.#peer.muteAnswer();
    this.send({ type: "response.cancel" });
    this.send({ type: "output_audio_buffer.clear" });
    return null;
  }

  /** @returns {Promise<import("./transport.js").Cut[] | null>} */
  async yieldToUser() {
    this.#peer.muteAnswer();
    return null;
  }

  /** @param {MediaStreamTrack} track */
  replaceMicrophone(track) {
    return this.#peer.replaceMicrophone(track);
  }

  statistics() {
    return this.#peer.statistics();
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#dialect.close();
    this.#peer.close();
    this.#hangUp();
  }

  /** @param {import("../session-machine.js").Failure} reason */
  #drop(reason) {
    if (!this.#open || this.#closed) return;
    this.close();
    this.#context.onDropped(reason);
  }

  /** @param {import("../events.js").Signal} signal */
  #take(signal) {
    if (signal.kind === "ready") return;
    if (signal.kind === "playback_started" || signal.kind === "playback_stopped") this.#peer.unmuteAnswer();
    this.#context.onSignal(signal);
  }
}

/**
 * Sends the offer to Azure itself.
 * @param {TransportContext} context
 * @returns {Exchange}
 */
function directExchange({ connection: { url, token } }) {
  return async (offer, signal) => {
    const headers = { "Content-Type": "application/sdp", Authorization: `Bearer ${token}` };
    let answer;
    try {
      answer = await fetch(url, { method: "POST", headers, body: offer, signal, credentials: "omit", redirect: "error" });
    } catch (error) {
      signal.throwIfAborted();
      throw failure("sdp_refused", "Azure can't be reached directly.");
    }
    if (!answer.ok) throw failure("sdp_refused", `Azure refused the call (${answer.status}).`);
    const callId = lastPart(answer.headers.get("Location")); // null where the answer does not expose it
    return { answer: await answer.text(), callId, hangUp: () => {} }; // a page may not hang up at Azure: closing the peer ends the call
  };
}

/**
 * Sends the offer to the broker, which hangs up at Azure as well.
 * @param {TransportContext} context
 * @returns {Exchange}
 */
function relayExchange({ connection: { url, token }, request }) {
  const authorization = sessionHeaders(token);
  return async (offer, signal) => {
    let answer;
    try {
      const headers = { "Content-Type": "application/sdp", ...authorization };
      answer = await request(url, { method: "POST", headers, body: offer, signal });
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
      request(call, { method: "DELETE", headers: authorization, keepalive: true }).catch(() => undefined);
    };
    return { answer: await answer.text(), hangUp, callId: lastPart(location) };
  };
}

/** @param {string | null} location */
function lastPart(location) {
  return location?.split(/[?#]/)[0].replace(/\/+$/, "").split("/").pop() ?? "";
}
