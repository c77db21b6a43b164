/**
 * WebRTC: media goes straight between browser and Azure. The offer goes to Azure with the ephemeral token, or through the
 * broker (`webrtc_relay`) for networks and tokens that Azure's own endpoint refuses; the media path is the same.
 */

import { within } from "../bounded.js";
import { sessionHeaders } from "../broker.js";
import { readFrame } from "../events.js";
import { failure } from "./transport.js";

/**
 * @typedef {import("./transport.js").TransportContext} TransportContext
 * @typedef {import("./transport.js").Transport} Transport
 *
 * @typedef {(offer: string, signal: AbortSignal) => Promise<{answer: string, hangUp: () => void, callId: string}>} Exchange
 *   Sends an SDP offer to Azure. Rejects with a `ConnectionFailure`.
 */

const SDP_TIMEOUT_MS = 4_000;
const MEDIA_TIMEOUT_MS = 5_000;
/** ICE may recover from `disconnected` by itself. */
const DISCONNECTED_GRACE_MS = 2_500;
/** For how long the rest of a cut answer is muted: it goes on until Azure has stopped it. */
const MUTE_MS = 1_000;
const CHANNEL_LABEL = "oai-events";
const BLOCKED = "This network lets no direct audio through.";

/** @implements {Transport} */
export class WebRtcTransport {
  reportsTurns = true;
  switchesAgents = false;
  #context;
  #exchange;
  /** @type {RTCPeerConnection} */
  #peer;
  /** @type {RTCDataChannel} */
  #channel;
  #open = false;
  #closed = false;
  #hangUp = () => {};
  /** The call's name, where the answer to the offer told it. @type {import("../call-events.js").CallName | null} */
  call = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #graceTimer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #muteTimer;

  /**
   * @param {TransportContext} context
   * @throws {import("./transport.js").ConnectionFailure} where the browser has no WebRTC
   */
  constructor(context) {
    this.#context = context;
    try {
      this.#peer = new RTCPeerConnection();
    } catch {
      throw failure("ice_failed", "This browser has no direct audio connections.");
    }
    this.#exchange = context.connection.transport === "webrtc_relay" ? relayExchange(context) : directExchange(context);
    this.#channel = this.#peer.createDataChannel(CHANNEL_LABEL);
    this.#channel.onmessage = ({ data }) => this.#handle(data);
    this.#peer.ontrack = ({ track, streams }) => context.audio.attachRemote(streams[0] ?? new MediaStream([track]));
  }

  /** @param {AbortSignal} signal */
  async open(signal) {
    const { microphone } = this.#context.audio;
    if (microphone) for (const track of microphone.getAudioTracks()) this.#peer.addTrack(track, microphone);
    else this.#peer.addTransceiver("audio", { direction: "recvonly" });
    const media = this.#media();
    media.catch(() => undefined); // it may fail before it is awaited below
    const slow = () => failure("sdp_timeout", "Azure took too long to take the call.");
    await within(this.#peer.setLocalDescription(), SDP_TIMEOUT_MS, signal, slow);
    const offer = this.#peer.localDescription?.sdp ?? "";
    const { answer, hangUp, callId } = await within(this.#exchange(offer, signal), SDP_TIMEOUT_MS, signal, slow);
    this.#hangUp = hangUp;
    if (callId) this.call = { id: callId, isOurs: this.#context.connection.transport === "webrtc_relay" };
    if (this.#closed) return this.#hangUp(); // closed meanwhile
    try {
      await within(this.#peer.setRemoteDescription({ type: "answer", sdp: answer }), SDP_TIMEOUT_MS, signal);
    } catch {
      signal.throwIfAborted();
      throw failure("sdp_refused", "Azure's answer to the call can't be understood.");
    }
    await within(media, MEDIA_TIMEOUT_MS, signal, () => failure("ice_timeout", BLOCKED));
    this.#open = true;
  }

  /** @param {object} event */
  send(event) {
    if (this.#channel.readyState === "open") this.#channel.send(JSON.stringify(event));
  }

  async interrupt() {
    this.#muteAnswer();
    this.send({ type: "response.cancel" });
    this.send({ type: "output_audio_buffer.clear" });
    return null;
  }

  /** @param {MediaStreamTrack} track */
  async replaceMicrophone(track) {
    const sender = this.#peer.getSenders().find((candidate) => candidate.track?.kind === "audio");
    await sender?.replaceTrack(track);
  }

  async yieldToUser() {
    this.#muteAnswer();
    return null;
  }

  async statistics() {
    /** @type {Record<string, any>[]} */
    const found = [];
    (await this.#peer.getStats()).forEach((/** @type {any} */ one) => found.push(one));
    const pair = found.find(({ type, nominated, state }) => type === "candidate-pair" && nominated && state === "succeeded");
    const inbound = found.find(({ type, kind }) => type === "inbound-rtp" && kind === "audio");
    const inMs = (/** @type {unknown} */ seconds) => (typeof seconds === "number" && seconds >= 0 ? Math.round(seconds * 1e6) / 1000 : null);
    const lost = Number.isInteger(inbound?.packetsLost) ? Math.max(0, inbound?.packetsLost) : null;
    return { rttMs: inMs(pair?.currentRoundTripTime), jitterMs: inMs(inbound?.jitter), lost };
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#graceTimer);
    clearTimeout(this.#muteTimer);
    this.#peer.onconnectionstatechange = null;
    this.#channel.onclose = null;
    this.#channel.onmessage = null;
    this.#peer.close();
    this.#context.audio.detachRemote();
    this.#hangUp();
  }

  /** Resolves once ICE, DTLS and the data channel are open; calls `onDropped` when they are lost after that. */
  #media() {
    return new Promise((/** @type {(value: void) => void} */ resolve, reject) => {
      this.#channel.onopen = () => resolve();
      this.#channel.onclose = () => {
        const dead = failure("channel_closed", "The direct connection to Azure closed.");
        reject(dead);
        this.#drop(dead.failure);
      };
      this.#peer.onconnectionstatechange = () => {
        clearTimeout(this.#graceTimer);
        const blocked = failure("ice_failed", BLOCKED);
        const giveUp = () => {
          reject(blocked);
          this.#drop(blocked.failure);
        };
        const { connectionState } = this.#peer;
        if (connectionState === "failed") giveUp();
        if (connectionState === "disconnected") this.#graceTimer = setTimeout(giveUp, DISCONNECTED_GRACE_MS);
      };
    });
  }

  /** @param {import("../session-machine.js").Failure} reason */
  #drop(reason) {
    if (!this.#open || this.#closed) return;
    this.close();
    this.#context.onDropped(reason);
  }

  /** @param {unknown} data */
  #handle(data) {
    const signal = readFrame(data, this.#context.onEvent);
    if (!signal || signal.kind === "ready") return;
    if (signal.kind === "playback_started" || signal.kind === "playback_stopped") this.#unmuteAnswer();
    this.#context.onSignal(signal);
  }

  #muteAnswer() {
    this.#context.audio.muteRemote(true);
    clearTimeout(this.#muteTimer);
    this.#muteTimer = setTimeout(() => this.#unmuteAnswer(), MUTE_MS);
  }

  #unmuteAnswer() {
    clearTimeout(this.#muteTimer);
    this.#context.audio.muteRemote(false);
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
