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
/** The broker's refusal of a text for an agent that can't read. */
const NOT_TAKEN = "text_not_taken";
/** After so long Azure has ended an answer that was cancelled, or whose transcript is complete. */
const ENDING_MS = 400;
/** After so long without an answer, a text is asked about here although the broker should have done that. */
const UNANSWERED_MS = 8_000;
/** Nothing at all has come for so long, while a text waits: longer than the broker waits for Azure before it takes another. */
const SILENT_MS = 40_000;
/** A text that met this many silent connections is given up. */
const SILENCES = 2;

export class TypedTexts {
  #send;
  #interrupt;
  #interrupts;
  #later;
  #isLed;
  #onSilent;
  #onLost;
  /** Everything that came, so that a look later sees whether something did. */
  #signs = 0;
  #isHeard = false;
  #silences = 0;
  /** The look that counts. */
  #looks = 0;
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
   * @param {() => void} [options.onSilent]  a text waits, and the connection is silent: another one may not be
   * @param {() => void} [options.onLost]  the texts that wait are given up
   * @param {(work: () => void, ms: number) => void} [options.later]
   */
  constructor({ send, interrupt, whileAnswering, ...options }) {
    const { isLed = () => false, onSilent = () => {}, onLost = () => {} } = options;
    this.#send = send;
    this.#interrupt = interrupt;
    this.#interrupts = whileAnswering === "interrupt";
    this.#isLed = isLed;
    this.#onSilent = onSilent;
    this.#onLost = onLost;
    this.#later = options.later ?? ((work, ms) => void setTimeout(work, ms));
  }

  /**
   * Sends a text, and asks for its answer as soon as no other runs.
   * @param {string} itemId
   * @param {string} words
   */
  say(itemId, words) {
    this.#open.set(itemId, words);
    this.#send(textEvents(itemId, words)[0]);
    this.#listen();
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
    this.#signs += 1;
    if (signal.kind === "playback_started" || signal.kind === "playback_stopped") this.#isHeard = signal.kind === "playback_started";
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
        if (signal.code === NOT_TAKEN) this.end(); // which the error has told
        if (signal.code !== ANSWERING) break;
        this.#answering = true; // its `response_done` will come
        this.#waits = true;
        return true;
    }
    return false;
  }

  /** The talk goes on over a new connection, which does not know what had no answer yet. */
  reconnected() {
    this.#answering = this.#waits = this.#asked = this.#toldOfEnds = this.#isHeard = false;
    for (const [itemId, words] of this.#open) this.#send(textEvents(itemId, words)[0]);
    if (this.#open.size > 0) this.#waits = true;
    if (this.#waits) this.#listen();
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
    this.#looks += 1;
    this.#silences = 0;
    this.#answering = this.#waits = this.#asked = false;
    return texts;
  }

  /** Something of an answer was heard: it answers what was typed before it was asked for. */
  #heard() {
    if (!this.#waits) this.#open.clear();
    this.#silences = 0;
  }

  /** A text waits: looks after a while whether anything has come, and again as long as something does. */
  #listen() {
    const signs = this.#signs;
    const look = ++this.#looks;
    this.#later(() => {
      if (look !== this.#looks || this.#open.size === 0) return;
      if (signs !== this.#signs || this.#isHeard) return this.#listen();
      this.#silences += 1;
      if (this.#silences < SILENCES) return this.#onSilent();
      this.end();
      this.#onLost();
    }, SILENT_MS);
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
