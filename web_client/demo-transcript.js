/** The demo page's transcript: what both sides said, what happened in between, and the cards that an agent shows. */

const MAX_ENTRIES = 200;
/** Sentences that are kept for a screen reader to go back to. */
const MAX_CAPTIONS = 20;
const MAX_TITLE = 200;
const MAX_TEXT = 2_000;

/** @typedef {import("./voice-session.js").VoiceSessionEvents["transcript"]} Line */

export class Transcript {
  #element;
  #captions;
  /** Whether whole sentences are announced. Off until somebody asks: the agent is heard already. */
  announces = false;

  /**
   * @param {HTMLElement} element  scrolls
   * @param {HTMLElement} captions  a live region; sighted users don't see it
   */
  constructor(element, captions) {
    this.#element = element;
    this.#captions = captions;
  }

  get isEmpty() {
    return this.#element.querySelector(".line") === null;
  }

  /**
   * A line, or a newer form of one.
   * @param {Line} line
   * @param {string} name  of who says it
   */
  show({ speaker, text, final, turnId, interrupted }, name) {
    const words = final && text === "" ? "(not understood)" : text;
    this.change(() => {
      const line = this.#line(turnId, speaker, name);
      if (this.announces && final && line.dataset.final !== "true") this.#announce(`${name}: ${words}`);
      line.dataset.final = String(final);
      line.dataset.interrupted = String(interrupted);
      /** @type {HTMLElement} */ (line.querySelector(".words")).textContent = words;
    });
  }

  /**
   * What happened between two lines, such as the beginning of another talk.
   * @param {string} words
   */
  note(words) {
    if (this.announces) this.#announce(words);
    this.change(() => this.#element.append(made("p", "note", words)));
  }

  /**
   * A card that the agent shows.
   * @param {{title?: unknown, text?: unknown}} content  as the model wrote it
   */
  card({ title, text }) {
    const card = made("section", "shown", "");
    const heading = made("h2", "", String(title ?? "Card").slice(0, MAX_TITLE));
    card.setAttribute("aria-label", heading.textContent || "Card");
    card.append(heading, made("p", "", String(text ?? "").slice(0, MAX_TEXT)));
    card.dir = "auto";
    this.note("The agent shows a card.");
    this.change(() => this.#element.append(card));
  }

  /**
   * Does what changes the transcript or its height. It goes on showing its newest line, unless somebody scrolled up.
   * @param {() => void} apply
   */
  change(apply) {
    const { scrollHeight, scrollTop, clientHeight } = this.#element;
    apply();
    const entries = this.#element.querySelectorAll(".line, .note, .shown");
    for (const old of [...entries].slice(0, Math.max(entries.length - MAX_ENTRIES, 0))) old.remove();
    if (scrollHeight - scrollTop - clientHeight < 40) this.#element.scrollTop = this.#element.scrollHeight;
  }

  /** @param {string} words */
  #announce(words) {
    this.#captions.append(made("p", "", words));
    while (this.#captions.childElementCount > MAX_CAPTIONS) this.#captions.firstElementChild?.remove();
  }

  /**
   * @param {string} turnId
   * @param {string} speaker
   * @param {string} name
   * @returns {HTMLElement}
   */
  #line(turnId, speaker, name) {
    const known = this.#element.querySelector(`[data-turn="${CSS.escape(turnId)}"]`);
    if (known instanceof HTMLElement) return known;
    const line = made("div", "line", "");
    line.dataset.turn = turnId;
    line.dataset.speaker = speaker;
    line.dir = "auto";
    line.append(made("span", "who", name), made("p", "words", ""));
    this.#element.append(line);
    return line;
  }
}

/**
 * @param {string} tag
 * @param {string} name  of its class; empty: none
 * @param {string} text
 * @returns {HTMLElement}
 */
function made(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
}
