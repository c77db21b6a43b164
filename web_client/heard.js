/**
 * How much of an answer was heard when it was cut, in its words. Azure tells no words' times: their share of the sound is
 * taken for their share of the text. Pure.
 */

/**
 * @typedef {object} Cut  An item whose playback was cut.
 * @property {string} itemId
 * @property {number} playedMs
 * @property {number} [totalMs]  of its sound that had come by then
 */

/** Characters a second, until this connection's own answers have told: speech in scripts with letters, and without. */
const CHARS_PER_S = { letters: 15, signs: 5 };
const SLOWEST_PER_S = 2;
const FASTEST_PER_S = 40;
/** Shorter sounds tell little of the pace. */
const MEASURED_MS = 1_000;
const SIGNS = /[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]/;

/**
 * The first `chars` characters of a text, without the word that they end in the middle of.
 * @param {string} text
 * @param {number} chars
 */
export function firstWords(text, chars) {
  if (chars >= text.length) return text;
  const cut = text.slice(0, Math.max(0, Math.round(chars))).replace(/[\uD800-\uDBFF]$/, "");
  if (/^\s/.test(text.slice(cut.length))) return cut;
  const blank = cut.search(/\s\S*$/);
  return blank > 0 ? cut.slice(0, blank) : cut;
}

/** The pace of the agent's speech, where only the time that has passed is known (WebRTC). */
export class Pace {
  /** @type {number | null} */
  #charsPerS = null;

  /**
   * An answer was heard to its end.
   * @param {string} text
   * @param {number} ms
   */
  learn(text, ms) {
    if (ms < MEASURED_MS || text === "") return;
    this.#charsPerS = Math.min(FASTEST_PER_S, Math.max(SLOWEST_PER_S, (text.length * 1000) / ms));
  }

  /**
   * How many characters of such a text are heard within so long.
   * @param {number} ms
   * @param {string} text
   */
  charsIn(ms, text) {
    const perS = this.#charsPerS ?? (SIGNS.test(text) ? CHARS_PER_S.signs : CHARS_PER_S.letters);
    return (perS * ms) / 1000;
  }
}
