/**
 * What the broker tells a page of its WebRTC call, beside Azure's own events: a stream that is read for as long as the call
 * lasts. A call that the page set up at Azure by itself is attached first.
 *
 * Between `broker.attached` and `broker.detached` the broker alone asks Azure for answers. A page whose stream is broken for
 * longer than a moment asks by itself again.
 */

import { retryAfterMs, sessionHeaders } from "./broker.js";
import { readFrame } from "./events.js";

/**
 * @typedef {{id: string, isOurs: boolean}} CallName  `isOurs`: the id is the broker's own, not Azure's
 *
 * @typedef {object} CallEventsOptions
 * @property {(path: string, init: RequestInit) => Promise<Response>} request  sends a request to the broker
 * @property {string} sessionId
 * @property {string} sessionToken
 * @property {(signal: import("./events.js").Signal) => void} onSignal
 * @property {(event: object) => void} [onEvent]  each event as it came
 * @property {(isAttached: boolean) => void} onLead  the broker asks for answers from now on, or no more
 * @property {(ms: number) => Promise<void>} [pause]
 */

const CALLS = "/api/v1/voice/realtime/calls";
/** So many requests in a row may fail: then the talk goes on without the stream. */
const TRIES = 8;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8_000;
/** The broker asks for a page that it has lost for longer than this, so that one of the two always does. */
const ALONE_AFTER_MS = 10_000;
const MAX_EVENT_CHARS = 65_536;

export class CallEvents {
  #options;
  #pause;
  #closing = new AbortController();
  #leads = false;
  #lastId = "";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #aloneTimer;

  /** @param {CallEventsOptions} options */
  constructor(options) {
    this.#options = options;
    this.#pause = options.pause ?? ((ms) => new Promise((done) => void setTimeout(done, ms)));
  }

  /** Whether the broker asks Azure for answers, and the page does not. */
  get leads() {
    return this.#leads;
  }

  /**
   * Reads the call's events until it is over, or `close`. Never rejects: a talk goes on without them.
   * @param {CallName} call
   */
  async follow(call) {
    try {
      const shown = call.isOurs ? call.id : await this.#attach(call.id);
      if (shown) await this.#readOn(`${CALLS}/${shown}/events`);
    } catch (error) {
      if (!this.#closing.signal.aborted) console.warn("VoiceSession: the call's events can't be read.", error);
    }
    this.#lead(false);
  }

  /** The call is over. */
  close() {
    this.#closing.abort();
    clearTimeout(this.#aloneTimer);
    this.#leads = false;
  }

  /**
   * @param {string} callId Azure's
   * @returns {Promise<string | null>} the broker's own id; null where it does not take the call
   */
  async #attach(callId) {
    const body = JSON.stringify({ session_id: this.#options.sessionId, call_id: callId });
    for (let tries = 0; tries < TRIES; tries += 1) {
      const headers = { "Content-Type": "application/json" };
      const answer = await this.#ask(`${CALLS}/attach`, { method: "POST", headers, body });
      if (answer?.ok) return String((await answer.json()).call_id);
      if (answer && answer.status < 500 && answer.status !== 429) return null;
      await this.#wait(tries, answer);
    }
    return null;
  }

  /** @param {string} path */
  async #readOn(path) {
    for (let failures = 0; failures < TRIES && !this.#closing.signal.aborted; failures += 1) {
      /** @type {Record<string, string>} */
      const headers = { Accept: "text/event-stream" };
      if (this.#lastId) headers["Last-Event-ID"] = this.#lastId;
      const answer = await this.#ask(path, { headers });
      const isStream = answer?.ok && answer.body && answer.headers.get("Content-Type")?.startsWith("text/event-stream");
      if (isStream && (await this.#readAll(/** @type {ReadableStream<Uint8Array>} */ (answer.body)))) failures = -1;
      else if (answer && (answer.status === 401 || answer.status === 403)) return;
      if (this.#leads) this.#aloneTimer ??= setTimeout(() => this.#lead(false), ALONE_AFTER_MS);
      await this.#wait(failures, answer);
    }
  }

  /**
   * @param {ReadableStream<Uint8Array>} body
   * @returns {Promise<boolean>} whether there was an event in it
   */
  async #readAll(body) {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    let waiting = "";
    let heard = false;
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done || this.#closing.signal.aborted) return heard;
        clearTimeout(this.#aloneTimer);
        this.#aloneTimer = undefined;
        const blocks = (waiting + decoder.decode(value, { stream: true })).split("\n\n");
        waiting = blocks.pop() ?? "";
        if (waiting.length > MAX_EVENT_CHARS) return heard;
        for (const block of blocks) heard = this.#take(block) || heard;
      }
    } catch {
      return heard; // broken off
    } finally {
      reader.cancel().catch(() => undefined);
    }
  }

  /**
   * @param {string} block the lines of an event
   * @returns {boolean} whether it was one
   */
  #take(block) {
    let data = "";
    for (const line of block.split("\n")) {
      if (line.startsWith("id: ")) this.#lastId = line.slice(4);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (data === "") return false;
    const signal = readFrame(data, this.#options.onEvent);
    if (signal?.kind === "attached") this.#lead(true);
    else if (signal?.kind === "detached") this.#lead(false);
    else if (signal && isUnseen(signal)) console.warn("VoiceSession: the broker does not hear this call; the talk goes on.");
    else if (signal) this.#options.onSignal(signal);
    return true;
  }

  /** @param {boolean} leads */
  #lead(leads) {
    if (!leads) {
      clearTimeout(this.#aloneTimer);
      this.#aloneTimer = undefined;
    }
    if (this.#leads === leads || this.#closing.signal.aborted) return;
    this.#leads = leads;
    this.#options.onLead(leads);
  }

  /**
   * @param {string} path
   * @param {RequestInit} init
   * @returns {Promise<Response | null>} null where the broker can't be reached
   */
  async #ask(path, init) {
    const { signal } = this.#closing;
    const headers = { .../** @type {Record<string, string>} */ (init.headers), ...sessionHeaders(this.#options.sessionToken) };
    try {
      return await this.#options.request(path, { ...init, headers, signal, cache: "no-store" });
    } catch (error) {
      signal.throwIfAborted();
      return null;
    }
  }

  /**
   * @param {number} failures
   * @param {Response | null} answer
   */
  async #wait(failures, answer) {
    const grows = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.max(0, failures));
    await this.#pause(Math.max(retryAfterMs(answer?.headers.get("Retry-After") ?? null), grows));
    this.#closing.signal.throwIfAborted();
  }
}

/**
 * The broker can't tell whose call it is, and the talk may go on without it.
 * @param {import("./events.js").Signal} signal
 */
function isUnseen(signal) {
  return signal.kind === "error" && signal.code === "not_verified" && !signal.retryable;
}
