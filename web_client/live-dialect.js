/**
 * GPT-Live's events as signals, and the page's events in its words. GPT-Live listens and speaks at once. It tells pieces of
 * both sides' words with their places on a timeline, and no turns, answers or ends: those are read from the pieces here, as
 * the broker does it for the memory (docs/api.md §6.7).
 */

import { encodePcm16 } from "./audio/pcm.js";
import { readEvent } from "./events.js";

/**
 * @typedef {import("./events.js").Signal} Signal
 * @typedef {import("./events.js").ServerEvent} ServerEvent
 * @typedef {import("./events.js").Speaker} Speaker
 * @typedef {import("./events.js").Dialect} Dialect
 *
 * @typedef {object} Turn  What one side says. Times are of the session's timeline.
 * @property {Speaker} speaker
 * @property {string} itemId
 * @property {number} startMs
 * @property {number} endMs
 * @property {number | null} closedMs  where the other side goes on
 * @property {string} text
 * @property {Timer} [timer]
 *
 * @typedef {object} Answer  What the agent says without a pause.
 * @property {string} id
 * @property {boolean} isCancelled  the user has stopped it; what still comes of it is not played
 *
 * @typedef {ReturnType<typeof setTimeout>} Timer
 */

/** A longer silence of one speaker is between two turns. */
const GAP_MS = 2_000;
/** A turn is complete so long after the other side has begun: its last words may come late. */
const HELD_MS = 1_000;
/** So long after its last piece, where nobody goes on. */
const SILENT_MS = 3_000;
/** After so long without a piece the agent does not speak any more. */
const PAUSE_MS = 600;
/** After so long without a word the user waits for an answer, and no more after so long without one. */
const WAITS_MS = 600;
const GIVES_UP_MS = 8_000;
/** What a stopped answer still brings is left out for so long at most. */
const STOPPED_MS = 5_000;
const NOT_READ = "This agent can't read what is typed. Say it instead.";

/** @implements {Dialect} */
export class LiveDialect {
  #overMedia;
  #take = (/** @type {Signal} */ _signal) => {};
  /** Makes ids unique: of this connection, and of each of Azure's sessions on it. */
  #session = Math.random().toString(36).slice(2, 10);
  #count = 0;
  /** @type {Turn[]} */
  #turns = [];
  #latestMs = 0;
  /** The agent's turn whose sound came before its words. */
  #promised = "";
  /** @type {Answer | null} */
  #answer = null;
  #speaksUntilMs = 0;
  /** @type {Timer | undefined} */
  #pauseTimer;
  /** @type {Timer | undefined} */
  #stopTimer;
  /** @type {Timer | undefined} */
  #userTimer;
  #userSpeaks = false;
  /** A text was sent that was not asked about. */
  #typed = false;
  /** The broker has refused a typed text; its refusal of the question follows. */
  #refused = false;
  #closed = false;

  /** @param {{overMedia: boolean}} options  `overMedia`: the sound is no event, as over WebRTC */
  constructor({ overMedia }) {
    this.#overMedia = overMedia;
  }

  /**
   * @param {unknown} frame
   * @param {((event: object) => void) | undefined} onEvent
   * @param {(signal: Signal) => void} take  is called later, too, until `close`
   */
  read(frame, onEvent, take) {
    this.#take = take;
    if (typeof frame !== "string") return;
    let event;
    try {
      event = JSON.parse(frame);
    } catch {
      return;
    }
    if (typeof event !== "object" || event === null) return;
    onEvent?.(event);
    this.#handle(event);
  }

  /**
   * An event of the page's in GPT-Live's words.
   * @param {object} event
   * @returns {object | null} null: GPT-Live needs no such event
   */
  write(event) {
    const { type, item } = /** @type {ServerEvent} */ (event);
    switch (type) {
      case "conversation.item.create":
        if (item.type === "function_call_output") return { type: "response.item.create", item };
        if (item.type !== "message") return null;
        this.#typed = true;
        return { type: "response.item.create", item: { type: "message", id: item.id, role: item.role, content: item.content } };
      case "response.create":
        if (!this.#typed) return null; // what is said, GPT-Live answers by itself; after outputs the broker asks
        this.#typed = false;
        this.#waits();
        return event;
      case "response.cancel":
        this.#cancel();
        return null;
      default:
        return type.startsWith("broker.") ? event : null;
    }
  }

  /** @param {Int16Array} pcm */
  append(pcm) {
    return `{"type":"session.input_audio.append","audio":"${encodePcm16(pcm)}"}`;
  }

  close() {
    this.#closed = true;
    for (const timer of [this.#pauseTimer, this.#stopTimer, this.#userTimer]) clearTimeout(timer);
    for (const turn of this.#turns) clearTimeout(turn.timer);
  }

  /** @param {ServerEvent} event */
  #handle(event) {
    switch (event.type) {
      case "session.input_transcript.delta":
        return this.#said("user", event);
      case "session.output_transcript.delta":
        return this.#said("assistant", event);
      case "session.output_audio.delta":
        return this.#sounds(event.delta);
      case "session.delegation.created":
        return this.#waits();
      case "response.event":
        return this.#worked(event.event);
      case "session.started":
        return this.#begin();
      case "session.closed":
        return this.#ended(event.reason);
      case "broker.resuming":
        this.#begin();
        return this.#pass(event);
      case "broker.error":
        return this.#failed(event);
      default:
        if (!String(event.type).startsWith("session.")) this.#pass(event);
    }
  }

  /** @param {ServerEvent} event that GPT-Live shares with the other dialects, or the broker's own */
  #pass(event) {
    const signal = readEvent(event);
    if (signal) this.#take(signal);
  }

  /** Another session of Azure's: its timeline begins at 0. */
  #begin() {
    for (const turn of [...this.#turns]) this.#finish(turn);
    this.#endAnswer();
    this.#userSpeaks = false;
    clearTimeout(this.#userTimer);
    this.#latestMs = 0;
    this.#promised = "";
  }

  /** @param {unknown} reason */
  #ended(reason) {
    this.#begin();
    if (!this.#overMedia) return; // the broker goes on with another session, or closes the socket and says why
    if (reason === "expired") this.#take({ kind: "session_expired" });
    const message = "Azure's content filter has ended the talk.";
    if (reason === "content") this.#take({ kind: "error", code: "content_filter", message, retryable: true });
  }

  /** @param {ServerEvent} event */
  #failed(event) {
    if (event.code === "text_not_taken") {
      this.#refused = true;
      return this.#take({ kind: "error", code: "text_not_taken", message: NOT_READ, retryable: true });
    }
    if (event.code === "not_permitted" && this.#refused) {
      this.#refused = false;
      return;
    }
    this.#pass(event);
  }

  /** @param {unknown} nested an event of the Responses model that works for the agent */
  #worked(nested) {
    if (typeof nested !== "object" || nested === null) return;
    const signal = readEvent(nested);
    if (signal?.kind === "tool_call") this.#take(signal);
    if (/** @type {ServerEvent} */ (nested).type !== "response.created") return;
    if (this.#answer?.isCancelled) this.#forget(); // what comes next is another answer
    this.#waits();
  }

  // --- what both say

  /**
   * @param {Speaker} speaker
   * @param {ServerEvent} event
   */
  #said(speaker, { delta, start_ms: start, end_ms: end }) {
    if (typeof delta !== "string" || delta === "") return;
    const startMs = isTime(start) ? start : this.#latestMs;
    const endMs = Math.max(startMs, isTime(end) ? end : startMs);
    this.#latestMs = Math.max(this.#latestMs, endMs);
    const turn = this.#place(speaker, startMs, endMs);
    turn.text += delta;
    turn.startMs = Math.min(turn.startMs, startMs);
    turn.endMs = Math.max(turn.endMs, endMs);
    if (turn.closedMs === null) this.#finishAfter(turn, SILENT_MS);
    for (const other of this.#turns) {
      if (other.speaker === speaker || other.closedMs !== null || startMs < other.endMs) continue;
      other.closedMs = startMs;
      this.#finishAfter(other, HELD_MS);
    }
    const responseId = speaker === "assistant" ? this.#speaks(this.#overMedia ? endMs - startMs : 0) : null;
    if (speaker === "user") this.#hearsUser();
    if (responseId === null || !this.#answer?.isCancelled) {
      this.#take({ kind: "transcript_delta", speaker, itemId: turn.itemId, responseId, text: delta });
    }
  }

  /**
   * The turn that a piece belongs to.
   * @param {Speaker} speaker
   * @param {number} startMs
   * @param {number} endMs
   */
  #place(speaker, startMs, endMs) {
    const own = this.#turns.filter((turn) => turn.speaker === speaker);
    for (const turn of own.toReversed()) {
      const isOpen = turn.closedMs === null || startMs < turn.closedMs;
      if (isOpen && startMs <= turn.endMs + GAP_MS && endMs >= turn.startMs - GAP_MS) return turn;
    }
    for (const turn of own) {
      if (turn.closedMs === null) this.#finishAfter(turn, HELD_MS);
      turn.closedMs ??= startMs;
    }
    const itemId = speaker === "assistant" ? this.#agentsItem() : this.#newId("user");
    if (speaker === "assistant") this.#promised = "";
    /** @type {Turn} */
    const turn = { speaker, itemId, startMs, endMs, closedMs: null, text: "" };
    this.#turns.push(turn);
    return turn;
  }

  /**
   * @param {Turn} turn
   * @param {number} ms
   */
  #finishAfter(turn, ms) {
    clearTimeout(turn.timer);
    turn.timer = setTimeout(() => this.#finish(turn), ms);
  }

  /** @param {Turn} turn */
  #finish({ speaker, itemId, text, timer }) {
    clearTimeout(timer);
    this.#turns = this.#turns.filter((turn) => turn.itemId !== itemId);
    if (!this.#closed) this.#take({ kind: "transcript_done", speaker, itemId, responseId: null, text: text.trim() });
  }

  // --- who speaks

  /** @param {unknown} base64 */
  #sounds(base64) {
    if (typeof base64 !== "string" || this.#overMedia) return;
    const responseId = this.#speaks(0);
    const open = this.#turns.findLast((turn) => turn.speaker === "assistant" && turn.closedMs === null);
    const itemId = open?.itemId ?? this.#agentsItem();
    this.#take({ kind: "audio", responseId, itemId, contentIndex: 0, base64 });
  }

  /** The item of the agent's next turn. */
  #agentsItem() {
    this.#promised ||= this.#newId("agent");
    return this.#promised;
  }

  /**
   * The agent speaks, for so long from now on.
   * @param {number} ms
   * @returns {string} the answer's id
   */
  #speaks(ms) {
    const nowMs = performance.now();
    this.#speaksUntilMs = Math.max(this.#speaksUntilMs, nowMs + ms);
    clearTimeout(this.#pauseTimer);
    this.#pauseTimer = setTimeout(() => this.#endAnswer(), this.#speaksUntilMs - nowMs + PAUSE_MS);
    if (this.#answer) return this.#answer.id;
    clearTimeout(this.#userTimer);
    this.#userSpeaks = false;
    const id = this.#newId("answer");
    this.#answer = { id, isCancelled: false };
    this.#take({ kind: "response_started", responseId: id });
    if (this.#overMedia) this.#take({ kind: "playback_started", responseId: id });
    return id;
  }

  /** The agent pauses. */
  #endAnswer() {
    const answer = this.#answer;
    if (!answer) return;
    this.#forget();
    const itemId = this.#turns.findLast((turn) => turn.speaker === "assistant")?.itemId ?? this.#promised;
    if (!this.#overMedia) this.#take({ kind: "audio_done", itemId });
    if (!answer.isCancelled) this.#take({ kind: "response_done", responseId: answer.id, status: "completed" });
    if (this.#overMedia && !answer.isCancelled) this.#take({ kind: "playback_stopped" });
  }

  #forget() {
    clearTimeout(this.#pauseTimer);
    clearTimeout(this.#stopTimer);
    if (this.#overMedia && this.#answer?.isCancelled) this.#take({ kind: "playback_stopped" }); // it is heard again
    this.#answer = null;
    this.#speaksUntilMs = 0;
  }

  /** The user stops the answer. GPT-Live knows no such event: what still comes of it is left out. */
  #cancel() {
    const answer = this.#answer;
    if (answer?.isCancelled) return;
    if (answer) {
      answer.isCancelled = true;
      this.#stopTimer = setTimeout(() => this.#forget(), STOPPED_MS);
    }
    this.#take({ kind: "response_done", responseId: answer?.id ?? "", status: "cancelled" });
  }

  #hearsUser() {
    if (this.#answer) return; // both speak: whether the agent stops is its own business
    if (!this.#userSpeaks) this.#take({ kind: "speech_started" });
    this.#userSpeaks = true;
    clearTimeout(this.#userTimer);
    this.#userTimer = setTimeout(() => this.#waits(), WAITS_MS);
  }

  /** An answer is due. */
  #waits() {
    this.#userSpeaks = false;
    if (this.#answer) return;
    this.#take({ kind: "waiting" });
    clearTimeout(this.#userTimer);
    this.#userTimer = setTimeout(() => {
      this.#take({ kind: "response_done", responseId: "", status: "completed" });
      this.#take({ kind: "playback_stopped" });
    }, GIVES_UP_MS);
  }

  /** @param {string} what */
  #newId(what) {
    this.#count += 1;
    return `${what}_${this.#session}_${this.#count}`;
  }
}

/**
 * @param {unknown} ms
 * @returns {ms is number}
 */
function isTime(ms) {
  return typeof ms === "number" && ms >= 0 && ms < 1e8;
}
