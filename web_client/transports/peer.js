/**
 * A peer connection with Azure: its one audio line, its data channel, and its end, however that shows. The transports that
 * carry media over WebRTC share it; they differ in how the offer reaches Azure, and in where events travel.
 */

import { within } from "../bounded.js";
import { failure } from "./transport.js";

/**
 * @typedef {import("../session-machine.js").Failure} Failure
 * @typedef {import("../audio/audio-graph.js").AudioGraph} AudioGraph
 *
 * @typedef {object} PeerOptions
 * @property {AudioGraph} audio
 * @property {string} label  of the data channel
 * @property {(data: unknown) => void} onMessage  what comes on a data channel
 * @property {(failure: Failure) => void} onLost  the media or the data channel has ended; called once at most
 */

export const SDP_TIMEOUT_MS = 4_000;
const MEDIA_TIMEOUT_MS = 5_000;
/** Gathering may never end, and an offer without candidates is better than none: Azure's may be reached all the same. */
const GATHERING_MS = 3_000;
/** ICE may recover from `disconnected` by itself. */
const DISCONNECTED_GRACE_MS = 5_000;
/** Safari tells of no end: a peer that lives sends something, at least ICE's own checks, every few seconds. */
const WATCH_MS = 2_000;
const SILENT_LOOKS = 4;
/** For how long the rest of a cut answer is muted: it goes on until Azure has stopped it. */
const MUTE_MS = 1_000;
const DEFAULT_MESSAGE_BYTES = 65_536;
const BLOCKED = "This network lets no direct audio through.";
const CLOSED = "The direct connection to Azure closed.";

export class Peer {
  #options;
  /** @type {RTCPeerConnection} */
  #peer;
  /** @type {Set<RTCDataChannel>} */
  #channels = new Set();
  #media = promiseOf();
  #channel = promiseOf();
  #isLost = false;
  #closed = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #graceTimer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #muteTimer;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #watchTimer;

  /**
   * @param {PeerOptions} options
   * @throws {import("./transport.js").ConnectionFailure} where the browser has no WebRTC
   */
  constructor(options) {
    this.#options = options;
    try {
      this.#peer = new RTCPeerConnection();
    } catch {
      throw failure("ice_failed", "This browser has no direct audio connections.");
    }
    this.#listen(this.#peer.createDataChannel(options.label));
    this.#peer.ondatachannel = ({ channel }) => this.#listen(channel); // some services open one of their own
    this.#peer.ontrack = ({ track, streams }) => options.audio.attachRemote(streams[0] ?? new MediaStream([track]));
    this.#peer.onconnectionstatechange = () => this.#changed();
  }

  /**
   * The offer: one audio line and the data channel. Without a microphone it listens alone, or sends silence with
   * `speaks`; with `isComplete` it has the candidates that were found in time.
   * @param {AbortSignal} signal
   * @param {{isComplete?: boolean, speaks?: boolean}} [options]
   * @returns {Promise<string>}
   */
  async offer(signal, { isComplete = false, speaks = false } = {}) {
    const { audio } = this.#options;
    const stream = audio.microphone ?? (speaks ? audio.silence() : null);
    const [track] = stream?.getAudioTracks() ?? [];
    if (stream && track) this.#peer.addTrack(track, stream);
    else this.#peer.addTransceiver("audio", { direction: speaks ? "sendrecv" : "recvonly" });
    await within(this.#peer.setLocalDescription(), SDP_TIMEOUT_MS, signal, tooSlow);
    if (isComplete) await within(this.#gathered(), GATHERING_MS, signal).catch(() => signal.throwIfAborted());
    return this.#peer.localDescription?.sdp ?? "";
  }

  /**
   * @param {string} answer Azure's SDP
   * @param {AbortSignal} signal
   */
  async take(answer, signal) {
    try {
      await within(this.#peer.setRemoteDescription({ type: "answer", sdp: withLineEnds(answer) }), SDP_TIMEOUT_MS, signal);
    } catch {
      signal.throwIfAborted();
      throw failure("sdp_refused", "Azure's answer to the call can't be understood.");
    }
  }

  /**
   * Resolves once media can travel, and a data channel is open. A channel that isn't open after `channelMs` more is
   * gone without; by default it is waited for as long as for the media.
   * @param {AbortSignal} signal
   * @param {number} [channelMs]
   */
  async connected(signal, channelMs) {
    const blocked = () => failure("ice_timeout", BLOCKED);
    if (channelMs === undefined) return within(this.#channel.promise, MEDIA_TIMEOUT_MS, signal, blocked);
    await within(this.#media.promise, MEDIA_TIMEOUT_MS, signal, blocked);
    await within(this.#channel.promise, channelMs, signal).catch(() => signal.throwIfAborted());
    if (this.#isLost) await this.#media.promise; // it has failed meanwhile
  }

  /** From now on `onLost` is called when nothing of the peer arrives any more. */
  watch() {
    let before = -1;
    let silent = 0;
    clearInterval(this.#watchTimer);
    this.#watchTimer = setInterval(async () => {
      const received = await within(this.#received(), WATCH_MS).catch(() => 0);
      silent = received > 0 && received === before ? silent + 1 : 0;
      before = received;
      if (silent >= SILENT_LOOKS) this.#lose(failure("ice_failed", CLOSED));
    }, WATCH_MS);
  }

  /** What the other side takes at once. Engines that don't say so take what the standard begins with. */
  get largestMessageBytes() {
    return this.#peer.sctp?.maxMessageSize ?? DEFAULT_MESSAGE_BYTES;
  }

  /** @param {object} event */
  send(event) {
    for (const channel of this.#channels) {
      if (channel.readyState === "open") return channel.send(JSON.stringify(event));
    }
  }

  /** @param {MediaStreamTrack} track */
  async replaceMicrophone(track) {
    const sender = this.#peer.getSenders().find((candidate) => candidate.track?.kind === "audio");
    await sender?.replaceTrack(track);
  }

  /** @returns {Promise<import("../talk-reporter.js").MediaStatistics>} */
  async statistics() {
    const found = await this.#stats();
    const pair = found.find(({ type, nominated, state }) => type === "candidate-pair" && nominated && state === "succeeded");
    const inbound = found.find(({ type, kind }) => type === "inbound-rtp" && kind === "audio");
    const inMs = (/** @type {unknown} */ seconds) => (typeof seconds === "number" && seconds >= 0 ? Math.round(seconds * 1e6) / 1000 : null);
    const lost = Number.isInteger(inbound?.packetsLost) ? Math.max(0, inbound?.packetsLost) : null;
    return { rttMs: inMs(pair?.currentRoundTripTime), jitterMs: inMs(inbound?.jitter), lost };
  }

  /** Mutes what is left of an answer that was cut, for a moment at most. */
  muteAnswer() {
    this.#options.audio.muteRemote(true);
    clearTimeout(this.#muteTimer);
    this.#muteTimer = setTimeout(() => this.unmuteAnswer(), MUTE_MS);
  }

  unmuteAnswer() {
    clearTimeout(this.#muteTimer);
    this.#options.audio.muteRemote(false);
  }

  close() {
    if (this.#closed) return;
    this.#closed = this.#isLost = true;
    clearTimeout(this.#graceTimer);
    clearTimeout(this.#muteTimer);
    clearInterval(this.#watchTimer);
    this.#peer.onconnectionstatechange = this.#peer.ondatachannel = this.#peer.ontrack = null;
    for (const channel of this.#channels) channel.onopen = channel.onclose = channel.onmessage = null;
    this.#peer.close();
    this.#options.audio.detachRemote();
  }

  /** @param {RTCDataChannel} channel */
  #listen(channel) {
    this.#channels.add(channel);
    const opened = () => {
      this.#media.resolve(); // there is no channel without
      this.#channel.resolve();
    };
    if (channel.readyState === "open") opened();
    channel.onopen = opened;
    channel.onmessage = ({ data }) => this.#options.onMessage(data);
    channel.onclose = () => {
      this.#channels.delete(channel);
      const others = [...this.#channels].some(({ readyState }) => readyState === "open");
      if (!others) this.#lose(failure("channel_closed", CLOSED));
    };
  }

  #changed() {
    clearTimeout(this.#graceTimer);
    const giveUp = () => this.#lose(failure("ice_failed", BLOCKED));
    const { connectionState } = this.#peer;
    if (connectionState === "connected") this.#media.resolve();
    if (connectionState === "failed") giveUp();
    if (connectionState === "disconnected") this.#graceTimer = setTimeout(giveUp, DISCONNECTED_GRACE_MS);
  }

  /** @param {import("./transport.js").ConnectionFailure} why */
  #lose(why) {
    if (this.#isLost) return;
    this.#isLost = true;
    this.#media.reject(why);
    this.#channel.reject(why);
    this.#options.onLost(why.failure);
  }

  #gathered() {
    const peer = this.#peer;
    return new Promise((/** @type {(value: void) => void} */ resolve) => {
      const look = () => peer.iceGatheringState === "complete" && resolve();
      peer.onicegatheringstatechange = look;
      peer.onicecandidate = ({ candidate }) => candidate === null && resolve();
      look();
    });
  }

  /** A number that grows with everything that arrives; 0 where the browser counts nothing. */
  async #received() {
    const counters = ["bytesReceived", "packetsReceived", "responsesReceived", "requestsReceived", "lastPacketReceivedTimestamp"];
    const counted = (await this.#stats()).filter(({ type }) => ["candidate-pair", "transport", "inbound-rtp"].includes(type));
    return counted.flatMap((one) => counters.map((name) => Number(one[name]) || 0)).reduce((sum, count) => sum + count, 0);
  }

  async #stats() {
    /** @type {Record<string, any>[]} */
    const found = [];
    (await this.#peer.getStats()).forEach((/** @type {any} */ one) => found.push(one));
    return found;
  }
}

/**
 * An answer with the line ends that browsers want: CRLF after each line, the last one too.
 * @param {string} sdp
 */
export function withLineEnds(sdp) {
  return sdp.split(/[\r\n]+/).filter(Boolean).map((line) => `${line}\r\n`).join("");
}

export function tooSlow() {
  return failure("sdp_timeout", "Azure took too long to take the call.");
}

/** A promise that others settle; nobody has to wait for it. */
function promiseOf() {
  let resolve = () => {};
  let reject = (/** @type {Error} */ _error) => {};
  const promise = new Promise((/** @type {(value: void) => void} */ yes, no) => {
    resolve = yes;
    reject = no;
  });
  promise.catch(() => undefined);
  return { promise, resolve, reject };
}
