/**
 * Translates server events into signals: both dialects (preview with Voice Live, and GA), the filtered WebRTC stream, and
 * the broker's own events. Pure: a parsed server event in, a `Signal` out, or null for an event that the client ignores.
 */

import { appendFrame } from "./audio/pcm.js";

/**
 * @typedef {{kind: "ready", dialect: string | null, upstream: string | null, resource: string | null}
 *   | {kind: "resuming", reason: string, retryAfterMs: number | null}
 *   | {kind: "resumed", dialect: string | null, upstream: string | null, resource: string | null}
 *   | {kind: "agent_switched", agentId: string}
 *   | {kind: "attached"}
 *   | {kind: "detached"}
 *   | {kind: "switch_agent", agentId: string}
 *   | {kind: "item", itemId: string, previousItemId: string | null, role: "user" | "assistant"}
 *   | {kind: "speech_started"}
 *   | {kind: "speech_stopped"}
 *   | {kind: "waiting"}
 *   | {kind: "response_started", responseId: string}
 *   | {kind: "response_done", responseId: string, status: string}
 *   | {kind: "audio", responseId: string, itemId: string, contentIndex: number, base64: string}
 *   | {kind: "audio_done", itemId: string}
 *   | {kind: "playback_started", responseId?: string}
 *   | {kind: "playback_stopped"}
 *   | {kind: "transcript_delta", speaker: Speaker, itemId: string, responseId: string | null, text: string}
 *   | {kind: "transcript_done", speaker: Speaker, itemId: string, responseId: string | null, text: string}
 *   | {kind: "transcription_failed", itemId: string}
 *   | {kind: "tool_call", callId: string, name: string, args: string}
 *   | {kind: "tool", callId: string, name: string, state: "running" | "done" | "failed", durationMs: number}
 *   | {kind: "approval", id: string, name: string, args: string, server: string}
 *   | {kind: "latency", turnMs: number, from: string}
 *   | {kind: "session_expired"}
 *   | {kind: "error", code: string, message: string, retryable: boolean}} Signal
 *   `transcript_delta` appends to a transcript, `transcript_done` is the whole of it. `playback_*` tells of the sound that
 *   is played: over WebRTC Azure's events say so, over a WebSocket the playback worklet does. Between `resuming` and
 *   `resumed` the proxy connects the talk to Azure again; what is sent meanwhile is not lost. `waiting`: the user has said
 *   something, as far as one can tell, and waits for an answer.
 *
 * @typedef {"user" | "assistant"} Speaker
 * @typedef {Record<string, any>} ServerEvent  Untrusted JSON: every field is checked where it is read.
 *
 * @typedef {object} Dialect  How a connection's events are written.
 * @property {(frame: unknown, onEvent: ((event: object) => void) | undefined, take: (signal: Signal) => void) => void} read
 *   Gives `take` what a frame means, and `onEvent` the event as it came.
 * @property {(event: object) => object | null} write  An event of the Realtime API's as this connection takes it.
 * @property {(pcm: Int16Array) => string} append  The frame that carries a piece of the user's sound.
 * @property {() => void} close  Nothing is given to `take` any more.
 */

/** @type {Record<string, (event: ServerEvent) => Signal | null>} */
const READERS = {
  "broker.ready": (event) => ({ kind: "ready", ...upstream(event) }),
  "broker.resuming": (event) => ({
    kind: "resuming",
    reason: text(event.reason) ?? "lost",
    retryAfterMs: Number.isFinite(event.retry_after_s) ? Math.max(0, Math.ceil(event.retry_after_s * 1000)) : null,
  }),
  "broker.resumed": (event) => ({ kind: "resumed", ...upstream(event) }),
  "broker.agent.switched": (event) => withText(event.agent_id, (agentId) => ({ kind: "agent_switched", agentId })),
  "broker.error": (event) => errorSignal(event, event.retryable === true),
  "broker.attached": () => ({ kind: "attached" }),
  "broker.detached": () => ({ kind: "detached" }),
  "broker.agent.switch": (event) => withText(event.agent_id, (agentId) => ({ kind: "switch_agent", agentId })),
  "session.created": () => ({ kind: "ready", dialect: null, upstream: null, resource: null }),

  "input_audio_buffer.speech_started": () => ({ kind: "speech_started" }),
  "input_audio_buffer.speech_stopped": () => ({ kind: "speech_stopped" }),
  "input_audio_buffer.committed": (event) => item({ id: event.item_id, role: "user" }, event.previous_item_id),
  "conversation.item.created": (event) => item(event.item, event.previous_item_id),
  "conversation.item.added": (event) => item(event.item, event.previous_item_id),

  "conversation.item.input_audio_transcription.delta": (event) => spoken("transcript_delta", "user", event, event.delta),
  "conversation.item.input_audio_transcription.completed": (event) => spoken("transcript_done", "user", event, event.transcript),
  "conversation.item.input_audio_transcription.failed": (event) =>
    withText(event.item_id, (itemId) => ({ kind: "transcription_failed", itemId })),

  "response.output_item.done": (event) => called(event.item),
  "broker.tool": (event) =>
    withText(event.name, (name) => ({
      kind: "tool",
      callId: text(event.call_id) ?? "",
      name,
      state: event.state === "running" || event.state === "failed" ? event.state : "done",
      durationMs: Number.isFinite(event.duration_ms) ? event.duration_ms : 0,
    })),
  "broker.latency": (event) =>
    Number.isFinite(event.turn_ms) ? { kind: "latency", turnMs: event.turn_ms, from: text(event.from) ?? "" } : null,

  "response.created": (event) =>
    withText(event.response?.id, (responseId) => ({ kind: "response_started", responseId })),
  "response.done": (event) =>
    withText(event.response?.id, (responseId) => ({
      kind: "response_done",
      responseId,
      status: text(event.response.status) ?? "completed",
    })),
  "output_audio_buffer.started": (event) => {
    const responseId = text(event.response_id);
    return responseId === null ? { kind: "playback_started" } : { kind: "playback_started", responseId };
  },
  "output_audio_buffer.stopped": () => ({ kind: "playback_stopped" }),
  "output_audio_buffer.cleared": () => ({ kind: "playback_stopped" }),

  error: (event) =>
    event.error?.code === "session_expired"
      ? { kind: "session_expired" }
      : isHarmless(event.error?.code)
        ? null
        : errorSignal(event.error ?? {}, true),
};

// The dialects' names differ: `response.audio.delta` is `response.output_audio.delta` in GA, and so on.
for (const prefix of ["response.", "response.output_"]) {
  READERS[`${prefix}audio.delta`] = audio;
  READERS[`${prefix}audio.done`] = (event) => withText(event.item_id, (itemId) => ({ kind: "audio_done", itemId }));
  READERS[`${prefix}audio_transcript.delta`] = (event) => spoken("transcript_delta", "assistant", event, event.delta);
  READERS[`${prefix}audio_transcript.done`] = (event) => spoken("transcript_done", "assistant", event, event.transcript);
  READERS[`${prefix}text.delta`] = (event) => spoken("transcript_delta", "assistant", event, event.delta);
  READERS[`${prefix}text.done`] = (event) => spoken("transcript_done", "assistant", event, event.text);
}

/**
 * @param {unknown} event parsed JSON
 * @returns {Signal | null}
 */
export function readEvent(event) {
  if (typeof event !== "object" || event === null) return null;
  const type = /** @type {ServerEvent} */ (event).type;
  if (typeof type !== "string" || !Object.hasOwn(READERS, type)) return null;
  return READERS[type](/** @type {ServerEvent} */ (event));
}

/**
 * As `readEvent`, from the text of a frame. Returns null for a frame that is not JSON.
 * @param {unknown} frame
 * @param {(event: object) => void} [onEvent]  gets what the frame holds, as it came
 * @returns {Signal | null}
 */
export function readFrame(frame, onEvent) {
  if (typeof frame !== "string") return null;
  let event;
  try {
    event = JSON.parse(frame);
  } catch {
    return null;
  }
  if (typeof event === "object" && event !== null) onEvent?.(event);
  return readEvent(event);
}

/** The Realtime API's own. @type {Dialect} */
export const REALTIME = {
  read: (frame, onEvent, take) => {
    const signal = readFrame(frame, onEvent);
    if (signal) take(signal);
  },
  write: (event) => event,
  append: appendFrame,
  close: () => {},
};

/**
 * The events that add a typed message and ask for an answer.
 * @param {string} itemId chosen by the client, at most 32 characters
 * @param {string} words
 */
export function textEvents(itemId, words) {
  return [
    {
      type: "conversation.item.create",
      item: { id: itemId, type: "message", role: "user", content: [{ type: "input_text", text: words }] },
    },
    { type: "response.create" },
  ];
}

/**
 * The event that answers an MCP server's request for approval.
 * @param {string} id the request's
 * @param {boolean} yes
 */
export function approvalEvent(id, yes) {
  return { type: "conversation.item.create", item: { type: "mcp_approval_response", approval_request_id: id, approve: yes } };
}

/**
 * The event after which Azure waits for `input_audio_buffer.commit`, instead of looking for the end of speech itself.
 * @param {string} dialect
 */
export function pushToTalkEvent(dialect) {
  const session = dialect === "ga" ? { type: "realtime", audio: { input: { turn_detection: null } } } : { turn_detection: null };
  return { type: "session.update", session };
}

/**
 * The event that shows the model an image.
 * @param {string} itemId
 * @param {string} url a data: URL
 */
export function imageEvent(itemId, url) {
  const content = [{ type: "input_image", image_url: url }];
  return { type: "conversation.item.create", item: { id: itemId, type: "message", role: "user", content } };
}

/** @param {import("./audio/worklets.js").Cut} cut */
export function truncateEvent({ itemId, contentIndex, playedMs }) {
  return { type: "conversation.item.truncate", item_id: itemId, content_index: contentIndex, audio_end_ms: playedMs };
}

/** @param {ServerEvent} event */
function upstream(event) {
  return { dialect: text(event.dialect), upstream: text(event.upstream), resource: text(event.resource) };
}

/** @param {unknown} code */
function isHarmless(code) {
  // The client's `response.cancel` crossed the end of the answer.
  return code === "response_cancel_not_active" || code === "cancellation_failed";
}

/**
 * @param {ServerEvent | undefined} made
 * @param {unknown} previousItemId
 * @returns {Signal | null}
 */
function item(made, previousItemId) {
  const role = made?.role;
  if (role !== "user" && role !== "assistant") return null;
  return withText(made?.id, (itemId) => ({ kind: "item", itemId, previousItemId: text(previousItemId), role }));
}

/**
 * A finished item of an answer: a call of a function, or a request for approval.
 * @param {ServerEvent | undefined} made
 * @returns {Signal | null}
 */
function called(made) {
  const args = text(made?.arguments) ?? "";
  if (made?.type === "mcp_approval_request") {
    const asked = { name: text(made.name) ?? "", args, server: text(made.server_label) ?? "" };
    return withText(made.id, (id) => ({ kind: "approval", id, ...asked }));
  }
  if (made?.type !== "function_call" || made.status === "incomplete") return null;
  const callId = text(made.call_id);
  return callId === null ? null : withText(made.name, (name) => ({ kind: "tool_call", callId, name, args }));
}

/**
 * @param {ServerEvent} event
 * @returns {Signal | null}
 */
function audio(event) {
  const base64 = text(event.delta);
  if (base64 === null) return null;
  return withText(event.item_id, (itemId) => ({
    kind: "audio",
    responseId: text(event.response_id) ?? "",
    itemId,
    contentIndex: Number.isInteger(event.content_index) ? event.content_index : 0,
    base64,
  }));
}

/**
 * @param {"transcript_delta" | "transcript_done"} kind
 * @param {Speaker} speaker
 * @param {ServerEvent} event
 * @param {unknown} words
 * @returns {Signal | null}
 */
function spoken(kind, speaker, event, words) {
  if (typeof words !== "string") return null;
  return withText(event.item_id, (itemId) => ({
    kind,
    speaker,
    itemId,
    responseId: text(event.response_id),
    text: words,
  }));
}

/**
 * @param {ServerEvent} error
 * @param {boolean} retryable
 * @returns {Signal}
 */
function errorSignal(error, retryable) {
  const code = text(error.code) ?? text(error.type) ?? "unknown";
  return { kind: "error", code, message: text(error.message) ?? "Something went wrong on the other side.", retryable };
}

/**
 * @param {unknown} value
 * @param {(value: string) => Signal} make
 * @returns {Signal | null}
 */
function withText(value, make) {
  const found = text(value);
  return found === null ? null : make(found);
}

/** @param {unknown} value */
function text(value) {
  return typeof value === "string" && value !== "" ? value : null;
}
