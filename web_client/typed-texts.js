/**
 * Typed texts, and whether each has its answer. Azure refuses a question while it answers another one, and a connection
 * may break between question and answer: each text is asked about once, when that is possible, and is not forgotten before.
 *
 * Straight from Azure a page gets a part of the events alone, without the start and the end of answers, and without
 * errors. There an answer runs from its first words to its transcript, and its end at Azure is given a moment.
 */

import { textEvents } from "./events.js";

/** @typedef {import("./events.js").Signal} Signal */

/** Longer texts fit neither a data channel of every browser nor the broker's limit of a message, with JSON around them. */
export const MAX_TEXT_BYTES = 60_000;

/** Azure's refusal of a question while an answer runs. */
const ANSWERING = "conversation_already_has_active_response";
/** After so long Azure has ended an answer that was cancelled, or whose transcript is complete. */
const ENDING_MS = 400;
/** After so long without an answer, a text is asked about here although the broker should have done that. */
const UNANSWERED_MS = 8_000;

export class TypedTexts {
  #send;
  #interrupt;
  #interrupts;
  #later;
  #isLed;
  #questions = 0;
  /** The events of this connection tell of the start and the end of answers. */
  #toldOfEnds = false;
  /** What has no answer yet, by item. @type {Map<string, string>} */
  #open = new Map();
  #answering = false;
  /** A question waits for the end of the answer that runs. */
  #waits = false;
  /** A question was sent whose answer has not begun. */
  #asked = false;

  /**
   * @param {object} options
   * @param {(event: object) => void} options.send
   * @param {() => void} options.interrupt  stops the answer that runs
   * @param {"interrupt" | "queue"} options.whileAnswering  what a text does to the answer that runs
   * @param {() => boolean} [options.isLed]  the broker asks for answers, and the page sends items alone
   * @param {(work: () => void, ms: number) => void} [options.later]
   */
  constructor({ send, interrupt, whileAnswering, isLed = () => false, later = (work, ms) => void setTimeout(work, ms) }) {
    this.#send = send;
    this.#interrupt = interrupt;
    this.#interrupts = whileAnswering === "interrupt";
    this.#isLed = isLed;
    this.#later = later;
  }

  /**
   * Sends a text, and asks for its answer as soon as no other runs.
   * @param {string} itemId
   * @param {string} words
   */
  say(itemId, words) {
    this.#open.set(itemId, words);
    this.#send(textEvents(itemId, words)[0]);
    if ((this.#answering || this.#asked) && this.#interrupts) {
      this.#waits = true;
      this.#interrupt();
      if (!this.#toldOfEnds) this.#later(() => this.#ask(), ENDING_MS);
    } else {
      this.want();
    }
  }

  /** Asks for an answer, at once or after the one that runs. */
  want() {
    this.#waits = true;
    if (!this.#answering && !this.#asked) this.#ask();
  }

  /**
   * @param {Signal} signal
   * @returns {boolean} whether the signal concerns nobody else: a refusal that was expected
   */
  handle(signal) {
    switch (signal.kind) {
      case "response_started":
        this.#toldOfEnds = true;
        this.#answering = true;
        if (!this.#waits) this.#asked = false;
        break;
      case "audio":
      case "playback_started":
        this.#heard();
        break;
      case "transcript_delta":
        if (signal.speaker !== "assistant") break;
        this.#heard();
        if (!this.#toldOfEnds) {
          this.#answering = true;
          this.#asked = false;
        }
        break;
      case "transcript_done":
        if (signal.speaker !== "assistant") break;
        this.#heard();
        if (this.#toldOfEnds) break;
        this.#answering = this.#asked = false;
        if (this.#waits) this.#later(() => this.#ask(), ENDING_MS);
        break;
      case "response_done":
        this.#answering = false;
        this.#ask();
        break;
      case "error":
        if (signal.code !== ANSWERING) break;
        this.#answering = true; // its `response_done` will come
        this.#waits = true;
        return true;
    }
    return false;
  }

  /** The talk goes on over a new connection, which does not know what had no answer yet. */
  reconnected() {
    this.#answering = this.#waits = this.#asked = this.#toldOfEnds = false;
    for (const [itemId, words] of this.#open) this.#send(textEvents(itemId, words)[0]);
    if (this.#open.size > 0) this.#waits = true;
    this.#ask();
  }

  /** The broker asks no more: what it has not had answered is asked about here. */
  alone() {
    if (this.#open.size === 0 || this.#answering) return;
    this.#waits = true;
    this.#ask();
  }

  /** The talk is over. Returns the texts that were never answered, and forgets them. */
  end() {
    const texts = [...this.#open.values()];
    this.#open.clear();
    this.#answering = this.#waits = this.#asked = false;
    return texts;
  }

  /** Something of an answer was heard: it answers what was typed before it was asked for. */
  #heard() {
    if (!this.#waits) this.#open.clear();
  }

  #ask() {
    if (!this.#waits) return;
    this.#waits = false;
    this.#asked = true;
    const question = ++this.#questions;
    if (!this.#isLed()) return this.#send({ type: "response.create" });
    this.#later(() => {
      if (question === this.#questions && this.#asked && !this.#answering) this.#send({ type: "response.create" });
    }, UNANSWERED_MS);
  }
}
