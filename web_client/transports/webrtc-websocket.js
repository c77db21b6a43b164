/**
 * Voice Live by WebRTC: media goes straight between browser and Azure; the offer, its answer and the events that a page
 * sends go through the broker's socket. Azure tells of the talk on that socket and on the data channel, of some things on
 * both, in no order that holds between the two.
 */

import { within } from "../bounded.js";
import { readEvent } from "../events.js";
import { EXPIRED, failureOf } from "./close-codes.js";
import { Peer, SDP_TIMEOUT_MS, tooSlow } from "./peer.js";
import { failure } from "./transport.js";

/**
 * @typedef {import("./transport.js").TransportContext} TransportContext
 * @typedef {import("./transport.js").Transport} Transport
 * @typedef {import("../session-machine.js").Failure} Failure
 */

const CHANNEL_LABEL = "voice-live-events";
/** The data channel may come late, or never: the talk is live without it so long after the media. */
const CHANNEL_MS = 2_000;
/** Longer than the broker's own limit to reach Azure, so that its close code tells what happened. */
const ANSWER_MS = 5_500;
/** From the answer until Azure has confirmed the agent. */
const READY_MS = 5_000;
/** An event on both channels has the same id on both; the two are never further apart than this. */
const IDS_KEPT = 512;

/** @implements {Transport} */
export class WebRtcWebSocketTransport {
  reportsTurns = false;
  repeatsTurns = true; // Azure may tell transcripts on the data channel alone
  switchesAgents = false; // the voice of a call can't change: another agent is another call
  call = null;
  #context;
  #peer;
  /** @type {WebSocket | null} */
  #socket = null;
  #open = false;
  #closed = false;
  /** @type {Set<string>} */
  #seen = new Set();
  /** What `open` waits for on the socket. */
  #onAnswer = (/** @type {string} */ _sdp) => {};
  #onReady = () => {};
  #onFailed = (/** @type {Error} */ _error) => {};

  /**
   * @param {TransportContext} context
   * @throws {import("./transport.js").ConnectionFailure} where the browser has no WebRTC
   */
  constructor(context) {
    this.#context = context;
    this.#peer = new Peer({
      audio: context.audio,
      label: CHANNEL_LABEL,
      onMessage: (data) => this.#take(data),
      onLost: (reason) => this.#drop(reason),
    });
  }

  /** @param {AbortSignal} signal */
  async open(signal) {
    const { connection } = this.#context;
    const socket = new WebSocket(connection.url, connection.protocols); // it opens while candidates are gathered
    this.#socket = socket;
    const opened = new Promise((/** @type {(value: void) => void} */ resolve) => (socket.onopen = () => resolve()));
    const answered = new Promise((/** @type {(sdp: string) => void} */ resolve) => (this.#onAnswer = resolve));
    const ready = new Promise((/** @type {(value: void) => void} */ resolve) => (this.#onReady = resolve));
    const failed = new Promise((/** @type {(value: never) => void} */ _, reject) => (this.#onFailed = reject));
    failed.catch(() => undefined);
    socket.onmessage = ({ data }) => this.#take(data);
    socket.onclose = (close) => {
      const reason = failureOf(close);
      this.#onFailed(failure(reason.code, reason.message, reason));
      this.#drop(reason);
    };
    const offer = await this.#peer.offer(signal, { isComplete: true, speaks: true });
    await within(Promise.race([opened, failed]), SDP_TIMEOUT_MS, signal, tooSlow);
    this.send({ type: "rtc.call.sdp.create", sdp_offer: offer });
    const answer = await within(Promise.race([answered, failed]), ANSWER_MS, signal, tooSlow);
    await this.#peer.take(answer, signal);
    const late = () => failure("socket_timeout", "The voice service took too long to connect.");
    const confirmed = within(Promise.race([ready, failed]), READY_MS, signal, late);
    await Promise.all([Promise.race([this.#peer.connected(signal, CHANNEL_MS), failed]), confirmed]);
    this.#open = true;
    this.#peer.watch();
  }

  /** @param {object} event */
  send(event) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(event));
  }

  async interrupt() {
    this.#peer.muteAnswer();
    this.send({ type: "response.cancel" }); // without an answer Azure refuses it, which does no harm
    return null;
  }

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
    this.#peer.close();
    if (!this.#socket) return;
    this.#socket.onmessage = this.#socket.onclose = this.#socket.onopen = null;
    this.#socket.close(1000);
  }

  /** @param {unknown} data a frame of the socket, or a message of the data channel */
  #take(data) {
    const event = parsed(data);
    if (!event || this.#isKnown(event.event_id)) return;
    this.#context.onEvent?.(event);
    if (event.type === "rtc.call.sdp.created") return this.#onAnswer(String(event.sdp_answer));
    if (event.type === "rtc.call.error") return this.#onFailed(failure("sdp_refused", "Azure refused the call."));
    const signal = readEvent(event);
    if (!signal) return;
    switch (signal.kind) {
      case "ready":
        if (event.type !== "broker.ready") return; // Azure's session has begun; the agent is not confirmed
        this.#onReady();
        break;
      case "playback_started":
      case "playback_stopped":
        this.#peer.unmuteAnswer();
        break;
      case "audio":
      case "audio_done":
        return; // it is heard over the media
      case "session_expired":
        return this.#drop(EXPIRED);
    }
    this.#context.onSignal(signal);
  }

  /**
   * Whether an event came on the other channel already.
   * @param {unknown} id
   */
  #isKnown(id) {
    if (typeof id !== "string" || id === "") return false;
    if (this.#seen.has(id)) return true;
    this.#seen.add(id);
    for (const oldest of this.#seen) {
      if (this.#seen.size <= IDS_KEPT) break;
      this.#seen.delete(oldest);
    }
    return false;
  }

  /** @param {Failure} reason */
  #drop(reason) {
    this.#onFailed(failure(reason.code, reason.message, reason));
    if (!this.#open || this.#closed) return;
    this.close();
    this.#context.onDropped(reason);
  }
}

/**
 * @param {unknown} data
 * @returns {Record<string, any> | null} null where it is not a JSON object
 */
function parsed(data) {
  if (typeof data !== "string") return null;
  try {
    const event = JSON.parse(data);
    return typeof event === "object" ? event : null;
  } catch {
    return null;
  }
}
