// The server events of one talk, in either dialect: a program waits for them, and reports them to its test.

const AUDIO = new Set(["response.output_audio.delta", "response.audio.delta"]);
const ANSWER = new Set([
  "response.output_audio_transcript.done",
  "response.audio_transcript.done",
  "response.output_text.done",
  "response.text.done",
]);
const TRANSCRIBED = "conversation.item.input_audio_transcription.completed";
const LIMIT_MS = 20_000;
const CHUNK_BYTES = 4_800; // 100 ms

export class TalkLog {
  #counts = new Map();
  #waiting = [];
  #failure;
  #audio = [];
  #user = [];
  #answers = [];

  /** Takes an event as the wire has it, or as a client passes it on: clients decode audio, or leave it in base64. */
  add(event) {
    this.#counts.set(event.type, (this.#counts.get(event.type) ?? 0) + 1);
    if (AUDIO.has(event.type)) {
      this.#audio.push(new Uint8Array(typeof event.delta === "string" ? fromBase64(event.delta) : event.delta));
    } else if (ANSWER.has(event.type)) {
      this.#answers.push(event.transcript ?? event.text);
    } else if (event.type === TRANSCRIBED) {
      this.#user.push(event.transcript);
    } else if (event.type === "error") {
      this.fail(new Error(JSON.stringify(event.error)));
    }
    this.#settle();
  }

  fail(error) {
    this.#failure ??= error instanceof Error ? error : new Error(describe(error));
    this.#settle();
  }

  /** Waits until `count` events of that type have come. Rejects on the first error, and after twenty seconds. */
  until(type, count = 1) {
    return new Promise((resolve, reject) => {
      const late = () => reject(new Error(`no ${type} (${count}); there came ${JSON.stringify([...this.#counts])}`));
      const timer = setTimeout(late, LIMIT_MS);
      const settle = (done) => (value) => (clearTimeout(timer), done(value));
      this.#waiting.push({ type, count, resolve: settle(resolve), reject: settle(reject) });
      this.#settle();
    });
  }

  /** Resolves once the speech has been transcribed and answered. */
  async untilFirstAnswer() {
    await Promise.all([this.until(TRANSCRIBED), this.until("response.done")]);
  }

  report() {
    if (this.#failure) throw this.#failure;
    return {
      counts: Object.fromEntries(this.#counts),
      user: this.#user,
      answers: this.#answers,
      audio: toBase64(this.#audio),
    };
  }

  #settle() {
    this.#waiting = this.#waiting.filter((waiting) => {
      if (this.#failure) waiting.reject(this.#failure);
      else if ((this.#counts.get(waiting.type) ?? 0) >= waiting.count) waiting.resolve();
      else return true;
      return false;
    });
  }
}

/** The speech, 100 ms at a time, as bytes. */
export function* audioChunks(pcmBase64) {
  const pcm = fromBase64(pcmBase64);
  for (let begin = 0; begin < pcm.length; begin += CHUNK_BYTES) yield pcm.slice(begin, begin + CHUNK_BYTES);
}

export function* base64Chunks(pcmBase64) {
  for (const chunk of audioChunks(pcmBase64)) yield toBase64([chunk]);
}

export const textMessage = (text) => ({ type: "message", role: "user", content: [{ type: "input_text", text }] });

/** The history that `@openai/agents-realtime` keeps, as pairs of role and words. */
export const historyWords = (history) =>
  history.map(({ role, content }) => [role, content.map((part) => part.transcript ?? part.text).join("")]);

function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function toBase64(pieces) {
  return btoa(pieces.map((piece) => Array.from(piece, (byte) => String.fromCharCode(byte)).join("")).join(""));
}

function describe(error) {
  const inner = error?.error?.error ?? error?.error ?? error;
  return inner?.message ?? JSON.stringify(inner);
}
