/**
 * Assembles signals into lines of a transcript, and into turns for the memory. Pure.
 *
 * An item's `sequence` is its place in the connection, in the order in which items were created; transcripts come in any
 * order. An assistant's turn waits until its playback has ended: only then is it known whether it was interrupted.
 */

/**
 * @typedef {import("./events.js").Signal} Signal
 * @typedef {import("./events.js").Speaker} Speaker
 *
 * @typedef {object} Line  What is on screen for one turn; a later line with the same turnId replaces it.
 * @property {Speaker} speaker
 * @property {string} text
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
  #sounding = false;
  #now;

  /** @param {() => Date} [now] */
  constructor(now = () => new Date()) {
    this.#now = now;
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
        this.#sounding = true;
        return { lines: [], turns };
      }
      case "playback_stopped":
        this.#sounding = false;
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
   * Marks the assistant's items as interrupted.
   * @param {string[]} [itemIds] the items that were cut; without them, those that are being played
   * @returns {ConversationUpdate}
   */
  interrupted(itemIds) {
    const cut = [...this.#items.values()].filter((item) =>
      itemIds ? itemIds.includes(item.itemId) : this.#sounding && item.speaker === "assistant" && !item.reported,
    );
    this.#sounding = false;
    const lines = cut.flatMap((item) => {
      item.interrupted = true;
      return this.#show(item).lines;
    });
    return { lines, turns: this.#finishedTurns() };
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
      .filter((item) => !item.final && item.text.trim() !== "")
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
      item = { itemId, speaker, sequence: this.#nextSequence, text: "", final: false, interrupted: false, reported: false, createdAt };
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
  #show({ itemId, speaker, text, final, interrupted }, worthShowing = true) {
    return worthShowing ? { lines: [{ speaker, text, final, turnId: itemId, interrupted }], turns: [] } : nothing();
  }

  /**
   * Returns complete turns, each once.
   * @param {boolean} [all] also those whose playback goes on
   */
  #finishedTurns(all = false) {
    const turns = [];
    for (const item of this.#items.values()) {
      if (!item.final || item.reported) continue;
      if (item.speaker === "assistant" && this.#sounding && !all) continue;
      item.reported = true;
      if (item.text.trim() !== "") turns.push(turnOf(item));
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
function turnOf({ itemId, speaker, text, sequence, interrupted, createdAt }) {
  return { turnId: itemId, role: speaker, content: text, sequence, interrupted, createdAt };
}

/** @returns {ConversationUpdate} */
function nothing() {
  return { lines: [], turns: [] };
}
