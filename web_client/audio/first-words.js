/**
 * What was said while the talk connects: kept until a connection takes it over, in order and once. Only a socket does; over
 * WebRTC sound travels as it is made, and what came before is left out.
 */

/** Chunks of 20 ms: three seconds. Of more than that, the last three are kept, which join what is said next. */
const KEPT_CHUNKS = 150;

export class FirstWords {
  /** @type {Int16Array[]} */
  #chunks = [];
  #keeps = false;

  get keeps() {
    return this.#keeps;
  }

  /** No connection takes the sound: it is kept from now on. */
  begin() {
    this.#keeps = true;
  }

  /** @param {Int16Array} chunk */
  add(chunk) {
    if (!this.#keeps) return;
    this.#chunks.push(chunk);
    if (this.#chunks.length > KEPT_CHUNKS) this.#chunks.shift();
  }

  /** Forgets what was said so far: the user has muted the microphone, or let go of the button. */
  drop() {
    this.#chunks = [];
  }

  /** Hands over what was said, and keeps no more. */
  take() {
    const chunks = this.#chunks;
    this.#chunks = [];
    this.#keeps = false;
    return chunks;
  }
}
