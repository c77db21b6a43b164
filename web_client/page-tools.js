/**
 * Tools that the page runs for the agent: the model calls a function, the page's handler does it, and what it returns goes
 * back to the model. Each call gets exactly one output. The page is silent about tools that are not its own.
 */

import { within } from "./bounded.js";

/**
 * @typedef {(args: Record<string, unknown>, call: {callId: string, signal: AbortSignal}) => unknown} ToolHandler
 *   Returns what the model is told, or a promise of it: a text as it is, anything else as JSON. `signal` is aborted when
 *   nobody waits for the output any more.
 *
 * @typedef {{name: string, callId: string, state: "running" | "done" | "failed", durationMs: number}} ToolState
 */

const TIMEOUT_MS = 20_000;
const MAX_OUTPUT_CHARS = 16_384;
const CALLS_KEPT = 256;

export class PageTools {
  /** @type {Map<string, ToolHandler>} */
  #handlers = new Map();
  #send;
  #onOutputs;
  #onState;
  /** Calls that were begun on this connection. @type {Set<string>} */
  #begun = new Set();
  #running = 0;
  #closing = new AbortController();

  /**
   * @param {object} options
   * @param {(event: object) => void} options.send
   * @param {() => void} options.onOutputs  all calls that ran have their outputs
   * @param {(state: ToolState) => void} options.onState
   */
  constructor({ send, onOutputs, onState }) {
    this.#send = send;
    this.#onOutputs = onOutputs;
    this.#onState = onState;
  }

  /** Whether there is a tool. */
  get hasTools() {
    return this.#handlers.size > 0;
  }

  /**
   * @param {string} name
   * @param {ToolHandler | null} handler null forgets the tool
   */
  set(name, handler) {
    if (handler) this.#handlers.set(name, handler);
    else this.#handlers.delete(name);
  }

  /** @param {import("./events.js").Signal} signal */
  handle(signal) {
    if (signal.kind !== "tool_call" || this.#begun.has(signal.callId)) return;
    const handler = this.#handlers.get(signal.name);
    if (!handler) return;
    this.#begun.add(signal.callId);
    for (const oldest of this.#begun) {
      if (this.#begun.size <= CALLS_KEPT) break;
      this.#begun.delete(oldest);
    }
    void this.#run(handler, signal, this.#closing);
  }

  /** The connection is over: nobody waits for the outputs of its calls any more. */
  end() {
    this.#closing.abort();
    this.#closing = new AbortController();
    this.#begun.clear();
    this.#running = 0;
  }

  /**
   * @param {ToolHandler} handler
   * @param {Extract<import("./events.js").Signal, {kind: "tool_call"}>} call
   * @param {AbortController} closing
   */
  async #run(handler, { name, callId, args }, closing) {
    const { signal } = closing;
    const began = performance.now();
    this.#running += 1;
    this.#onState({ name, callId, state: "running", durationMs: 0 });
    const { output, failed } = await outputOf(handler, args, callId, signal);
    if (signal.aborted) return;
    this.#running -= 1;
    this.#onState({ name, callId, state: failed ? "failed" : "done", durationMs: Math.round(performance.now() - began) });
    this.#send({ type: "conversation.item.create", item: { type: "function_call_output", call_id: callId, output } });
    if (this.#running === 0) this.#onOutputs();
  }
}

/**
 * What the model is told of a call. The page's own errors are for its developer: the model learns only that it failed.
 * @param {ToolHandler} handler
 * @param {string} args
 * @param {string} callId
 * @param {AbortSignal} signal
 */
async function outputOf(handler, args, callId, signal) {
  try {
    const parsed = JSON.parse(args || "{}");
    if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) throw new TypeError("the arguments are no object");
    const result = await within(Promise.resolve(handler(parsed, { callId, signal })), TIMEOUT_MS, signal);
    const output = asText(result);
    if (output.length <= MAX_OUTPUT_CHARS) return { output, failed: false };
    throw new RangeError(`the result has ${output.length} characters; ${MAX_OUTPUT_CHARS} are permitted`);
  } catch (error) {
    if (!signal.aborted) console.error(error);
    return { output: JSON.stringify({ error: "the page could not do this" }), failed: true };
  }
}

/** @param {unknown} result */
function asText(result) {
  if (typeof result === "string") return result;
  return JSON.stringify(result, (_, value) => (typeof value === "bigint" ? String(value) : value)) ?? "done";
}
