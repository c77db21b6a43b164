/**
 * Assembles signals into lines of a transcript, and into turns for the memory. Pure.
 *
 * An item's `sequence` is its place in the connection, in the order in which items were created; transcripts come in any
 * order. An assistant's turn waits until its playback has ended: only then is it known whether it was interrupted.
 */

import { Pace, firstWords } from "./heard.js";

/**
 * @typedef {import("./events.js").Signal} Signal
 * @typedef {import("./events.js").Speaker} Speaker
 *
 * @typedef {object} Line  What is on screen for one turn; a later line with the same turnId replaces it.
 * @property {Speaker} speaker
 * @property {string} text  of an interrupted answer the words that were heard
 * @property {boolean} final
 * @property {string} turnId
 * @property {boolean} interrupted
 *
 * @typedef {object} Turn
 * @property {string} turnId  the item's id
 * @property {Speaker} role
 * @property {string} content
 * @property {number} sequence
 * @property {boolean} interrupted
 * @property {string} createdAt  ISO 8601, UTC
 *
 * @typedef {{lines: Line[], turns: Turn[]}} ConversationUpdate
 *
 * @typedef {object} Item
 * @property {string} itemId
 * @property {Speaker} speaker
 * @property {number} sequence
 * @property {string} text
 * @property {{chars: number} | {share: number} | null} heard  of an item that was cut: no more of it than that was heard
 * @property {boolean} final
 * @property {boolean} interrupted
 * @property {boolean} reported  whether it was returned as a turn
 * @property {string} createdAt
 */

const MAX_ITEMS = 200;
/** The content of a user turn that Azure could not transcribe: without a turn, the memory would wait for its sequence. */
const NOT_TRANSCRIBED = "(speech that could not be transcribed)";

export class Conversation {
  /** @type {Map<string, Item>} */
  #items = new Map();
  #nextSequence = 0;
  /** When the sound that is heard now began; null while none is. @type {number | null} */
  #soundingSinceMs = null;
  #pace = new Pace();
  #now;
  #clock;

  /**
   * @param {() => Date} [now]
   * @param {() => number} [clock] monotonic, in milliseconds
   */
  constructor(now = () => new Date(), clock = () => performance.now()) {
    this.#now = now;
    this.#clock = clock;
  }

  /**
   * Applies a signal.
   * @param {Signal} signal
   * @returns {ConversationUpdate}
   */
  apply(signal) {
    switch (signal.kind) {
      case "item":
        return this.#known(signal.itemId)
          ? nothing()
          : this.#show(this.#item(signal.itemId, signal.role), signal.role === "user");
      case "transcript_delta": {
        const item = this.#item(signal.itemId, signal.speaker);
        if (item.final) return nothing();
        item.text += signal.text;
        return this.#show(item);
      }
      case "transcript_done":
        return this.#said(this.#item(signal.itemId, signal.speaker), signal.text);
      case "transcription_failed":
        return this.#notUnderstood(this.#item(signal.itemId, "user"));
      case "resuming": // the proxy has ended the open answer: no more of it will come
        return this.#cutShort();
      case "playback_started": {
        const turns = this.#finishedTurns(true); // a missed stop: the playback before has ended
        this.#soundingSinceMs = this.#clock();
        return { lines: [], turns };
      }
      case "playback_stopped":
        this.#learnPace();
        this.#soundingSinceMs = null;
        return { lines: [], turns: this.#finishedTurns() };
      default:
        return nothing();
    }
  }

  /**
   * Adds typed text: a complete user turn.
   * @param {string} itemId
   * @param {string} text
   * @returns {ConversationUpdate}
   */
  typed(itemId, text) {
    return this.#said(this.#item(itemId, "user"), text);
  }

  /**
   * Marks the assistant's items as interrupted, and leaves them the words that were heard.
   * @param {import("./heard.js").Cut[]} [cuts] what was cut; without it, what is being played is cut now
   * @returns {ConversationUpdate}
   */
  interrupted(cuts) {
    const cut = cuts ? this.#cutAsTold(cuts) : this.#cutAfter(this.#soundingSinceMs);
    this.#soundingSinceMs = null;
    const lines = cut.flatMap((item) => {
      item.interrupted = true;
      return this.#show(item).lines;
    });
    return { lines, turns: this.#finishedTurns() };
  }

  /** @param {import("./heard.js").Cut[]} cuts */
  #cutAsTold(cuts) {
    return [...this.#items.values()].filter((item) => {
      const own = cuts.filter(({ itemId }) => itemId === item.itemId);
      const sum = (/** @type {(cut: import("./heard.js").Cut) => number} */ of) => own.reduce((all, each) => all + of(each), 0);
      const totalMs = sum((cut) => cut.totalMs ?? 0);
      const share = totalMs > 0 ? Math.min(1, sum((cut) => cut.playedMs) / totalMs) : 1;
      // The words that have come belong to the sound that has come; later ones were not heard.
      if (own.length > 0) item.heard = item.text === "" ? { share } : { chars: item.text.length * share };
      return own.length > 0;
    });
  }

  /** @param {number | null} sinceMs when the sound began; null: nothing is heard */
  #cutAfter(sinceMs) {
    if (sinceMs === null) return [];
    const cut = [...this.#items.values()].filter(({ speaker, reported }) => speaker === "assistant" && !reported);
    let chars = this.#pace.charsIn(this.#clock() - sinceMs, cut[0]?.text ?? "");
    for (const item of cut) {
      item.heard = { chars };
      chars = Math.max(0, chars - item.text.length);
    }
    return cut;
  }

  /** What is heard has come to its end by itself. */
  #learnPace() {
    if (this.#soundingSinceMs === null) return;
    const heard = [...this.#items.values()].filter(({ speaker, final, reported }) => speaker === "assistant" && final && !reported);
    this.#pace.learn(heard.map(({ text }) => text).join(""), this.#clock() - this.#soundingSinceMs);
  }

  /**
   * Ends the assistant's items whose transcript is not complete, as interrupted.
   * @returns {ConversationUpdate}
   */
  #cutShort() {
    const open = [...this.#items.values()].filter(({ speaker, final }) => speaker === "assistant" && !final);
    const lines = open.flatMap((item) => {
      item.final = item.interrupted = true;
      return this.#show(item, item.text !== "").lines;
    });
    return { lines, turns: this.#finishedTurns() };
  }

  /**
   * Ends the conversation.
   * `turns` waited for their playback to end; `partial` are items without a final transcript.
   * @returns {{turns: Turn[], partial: Turn[]}}
   */
  close() {
    const turns = this.#finishedTurns(true);
    const partial = [...this.#items.values()]
      .filter((item) => !item.final && wordsOf(item).trim() !== "")
      .map((item) => turnOf({ ...item, interrupted: true }));
    this.#items.clear();
    return { turns, partial };
  }

  /** @param {string} itemId */
  #known(itemId) {
    return this.#items.has(itemId);
  }

  /**
   * @param {string} itemId
   * @param {Speaker} speaker
   */
  #item(itemId, speaker) {
    let item = this.#items.get(itemId);
    if (!item) {
      const createdAt = this.#now().toISOString();
      item = { itemId, speaker, sequence: this.#nextSequence, text: "", heard: null, final: false, interrupted: false, reported: false, createdAt };
      this.#nextSequence += 1;
      this.#items.set(itemId, item);
      this.#forgetOldest();
    }
    return item;
  }

  /**
   * @param {Item} item
   * @param {string} text
   * @returns {ConversationUpdate}
   */
  #said(item, text) {
    if (item.final) return nothing();
    item.text = text;
    item.final = true;
    return { lines: this.#show(item).lines, turns: this.#finishedTurns() };
  }

  /**
   * @param {Item} item
   * @returns {ConversationUpdate}
   */
  #notUnderstood(item) {
    if (item.final) return nothing();
    const { lines } = this.#said(item, "");
    return { lines, turns: [{ ...turnOf(item), content: NOT_TRANSCRIBED }] };
  }

  /**
   * @param {Item} item
   * @param {boolean} [worthShowing] also true for a user's empty line, which keeps the place of a later transcript
   * @returns {ConversationUpdate}
   */
  #show(item, worthShowing = true) {
    const { itemId, speaker, final, interrupted } = item;
    return worthShowing ? { lines: [{ speaker, text: wordsOf(item), final, turnId: itemId, interrupted }], turns: [] } : nothing();
  }

  /**
   * Returns complete turns, each once.
   * @param {boolean} [all] also those whose playback goes on
   */
  #finishedTurns(all = false) {
    const turns = [];
    for (const item of this.#items.values()) {
      if (!item.final || item.reported) continue;
      if (item.speaker === "assistant" && this.#soundingSinceMs !== null && !all) continue;
      item.reported = true;
      if (wordsOf(item).trim() !== "") turns.push(turnOf(item));
    }
    return turns;
  }

  #forgetOldest() {
    for (const [itemId, item] of this.#items) {
      if (this.#items.size <= MAX_ITEMS) return;
      if (item.reported) this.#items.delete(itemId);
    }
  }
}

/**
 * @param {Item} item
 * @returns {Turn}
 */
function turnOf(item) {
  const { itemId, speaker, sequence, interrupted, createdAt } = item;
  return { turnId: itemId, role: speaker, content: wordsOf(item), sequence, interrupted, createdAt };
}

/**
 * The words of an item, as far as they were heard.
 * @param {Item} item
 */
function wordsOf({ text, heard }) {
  if (!heard) return text;
  return firstWords(text, "chars" in heard ? heard.chars : heard.share * text.length);
}

/** @returns {ConversationUpdate} */
function nothing() {
  return { lines: [], turns: [] };
}
