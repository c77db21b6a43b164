/**
 * The Realtime API over a WebSocket: through the broker's proxy, or straight to Azure where the plan says so. Both carry
 * the same events, with the audio in them.
 */

import { decodePcm16 } from "../audio/pcm.js";
import { within } from "../bounded.js";
import { REALTIME, truncateEvent } from "../events.js";
import { EXPIRED, NETWORK, failureOf } from "./close-codes.js";
import { failure } from "./transport.js";

/**
 * @typedef {import("./transport.js").TransportContext} TransportContext
 * @typedef {import("./transport.js").Transport} Transport
 * @typedef {import("../session-machine.js").Failure} Failure
 * @typedef {import("../events.js").Signal} Signal
 */

/** Longer than the broker's own limit to reach Azure, so that its close code tells what happened. */
const READY_TIMEOUT_MS = 12_000;
/** Three seconds of unsent audio: a new connection is better than one that is so late. */
const MAX_BACKLOG_BYTES = 192_000;
const CANCELLED_KEPT = 16;

/** @implements {Transport} */
export class WebSocketTransport {
  reportsTurns;
  switchesAgents;
  #context;
  #dialect;
  /** @type {WebSocket | null} */
  #socket = null;
  #open = false;
  #closed = false;
  #responseId = "";
  /** The item whose sound came last, and its response. */
  #last = { itemId: "", responseId: "" };
  #sounding = false;
  /** The audio that may wait to be sent: more than usual while the first words go out. */
  #allowedBytes = MAX_BACKLOG_BYTES;
  /** `yes` from `resuming` to `resumed`, then `was` until the unsent audio has gone out. @type {"no" | "yes" | "was"} */
  #resuming = "no";
  /** Answers that were cut: their later audio is not played. @type {Set<string>} */
  #cancelled = new Set();

  /** @param {TransportContext} context */
  constructor(context) {
    this.#context = context;
    this.#dialect = context.dialect ?? REALTIME;
    this.switchesAgents = context.connection.transport === "websocket_proxy";
    this.reportsTurns = !this.switchesAgents;
  }

  /** @param {AbortSignal} signal */
  async open(signal) {
    const { connection, audio } = this.#context;
    const socket = new WebSocket(connection.url, connection.protocols);
    this.#socket = socket;
    const ready = new Promise((/** @type {(value: void) => void} */ resolve, reject) => {
      const take = (/** @type {Signal} */ signal) => {
        this.#take(signal);
        if (signal.kind === "ready") resolve();
      };
      socket.onmessage = ({ data }) => this.#dialect.read(data, this.#context.onEvent, take);
      socket.onclose = (close) => {
        const reason = failureOf(close);
        reject(failure(reason.code, reason.message, reason));
        this.#drop(reason);
      };
    });
    audio.startPlayback((sounding) => this.#setSounding(sounding));
    await within(ready, READY_TIMEOUT_MS, signal, () => failure("socket_timeout", "The voice service took too long to connect."));
    this.#open = true;
    this.#handOver(audio.takeWords());
    audio.startCapture((chunk) => this.#sendAudio(chunk));
  }

  /** @param {object} event */
  send(event) {
    const written = this.#dialect.write(event);
    if (written && this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(written));
  }

  async interrupt() {
    const answering = this.#responseId !== "";
    const clearing = this.#silence();
    if (answering) this.send({ type: "response.cancel" });
    const cuts = await clearing;
    for (const cut of cuts) this.send(truncateEvent(cut));
    return cuts;
  }

  /** Azure does not know what was played, and a second cancel of the same answer does no harm. */
  yieldToUser() {
    return this.interrupt();
  }

  async replaceMicrophone() {
    // Nothing to do: the audio graph captures from the new one already.
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#dialect.close();
    const { audio } = this.#context;
    if (this.#open) audio.stopCapture();
    audio.stopPlayback();
    if (!this.#socket) return;
    this.#socket.onmessage = null;
    this.#socket.onclose = null;
    this.#socket.close(1000);
  }

  /**
   * Sends what was said before the talk was live, all at once: what is said now comes behind it.
   * @param {Int16Array[]} chunks
   */
  #handOver(chunks) {
    for (const chunk of chunks) this.#socket?.send(this.#dialect.append(chunk));
    this.#allowedBytes += this.#socket?.bufferedAmount ?? 0;
  }

  /** @param {Int16Array} chunk */
  #sendAudio(chunk) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    const waitingBytes = this.#socket.bufferedAmount;
    if (waitingBytes < MAX_BACKLOG_BYTES) this.#allowedBytes = MAX_BACKLOG_BYTES;
    if (waitingBytes > this.#allowedBytes) {
      // The proxy may read nothing while it has no Azure. Then audio is left out: a new connection would help nobody.
      return this.#resuming === "no" ? this.#drop(NETWORK) : undefined;
    }
    if (this.#resuming === "was") this.#resuming = "no";
    this.#socket.send(this.#dialect.append(chunk));
  }

  /** @param {Signal} signal */
  #take(signal) {
    switch (signal.kind) {
      case "audio":
        return this.#play(signal);
      case "audio_done":
        return this.#context.audio.finish(signal.itemId);
      case "response_started":
        this.#responseId = signal.responseId;
        break;
      case "response_done":
        if (signal.responseId === this.#responseId) this.#responseId = "";
        if (signal.responseId === this.#last.responseId) this.#finishAnswer();
        break;
      case "resumed":
        this.#resuming = "was";
        break;
      case "resuming":
        this.#resuming = "yes";
        this.#responseId = "";
        this.#finishAnswer();
        break;
      case "session_expired":
        return this.#drop(EXPIRED);
      case "transcript_delta":
      case "transcript_done":
        if (signal.responseId && this.#cancelled.has(signal.responseId) && signal.kind === "transcript_delta") return;
    }
    this.#context.onSignal(signal);
  }

  /** @param {Extract<Signal, {kind: "audio"}>} signal */
  #play({ responseId, itemId, contentIndex, base64 }) {
    if (this.#cancelled.has(responseId)) return;
    if (responseId !== "") this.#responseId = responseId;
    this.#last = { itemId, responseId };
    try {
      this.#context.audio.play(itemId, contentIndex, decodePcm16(base64));
      this.#setSounding(true); // the worklet would say so only after the transcript is complete
    } catch {
      this.#context.onSignal({ kind: "error", code: "bad_audio", message: "A piece of the answer could not be read.", retryable: true });
    }
  }

  /** @param {boolean} sounding */
  #setSounding(sounding) {
    if (this.#sounding === sounding) return;
    this.#sounding = sounding;
    this.#context.onSignal({ kind: sounding ? "playback_started" : "playback_stopped" });
  }

  /**
   * No more of the answer will come. An answer that was cut short has no end of its audio, and without one its player would
   * wait for more. What has come is played: where the proxy resumed the talk, the agent goes on from there.
   */
  #finishAnswer() {
    this.#context.audio.finish(this.#last.itemId);
  }

  /** Stops the playback, and drops the answer's later audio. */
  #silence() {
    if (this.#responseId !== "") {
      this.#cancelled.add(this.#responseId);
      this.#responseId = "";
      for (const oldest of this.#cancelled) {
        if (this.#cancelled.size <= CANCELLED_KEPT) break;
        this.#cancelled.delete(oldest);
      }
    }
    this.#sounding = false; // without a signal: the caller knows
    return this.#context.audio.clear();
  }

  /** @param {Failure} reason */
  #drop(reason) {
    if (!this.#open || this.#closed) return;
    this.close();
    this.#context.onDropped(reason);
  }
}
