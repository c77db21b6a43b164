import assert from "node:assert/strict";
import { test } from "node:test";

import { readEvent, readFrame, textEvents, truncateEvent } from "../events.js";

const words = (speaker, text, responseId = "r1") => ({ kind: "transcript_delta", speaker, itemId: "i1", responseId, text });
const said = (speaker, text, responseId = "r1") => ({ kind: "transcript_done", speaker, itemId: "i1", responseId, text });
const ids = { item_id: "i1", response_id: "r1", output_index: 0, content_index: 0, event_id: "e1" };
const sound = { kind: "audio", responseId: "r1", itemId: "i1", contentIndex: 0, base64: "AAA=" };
const item = (role) => ({ id: "i1", type: "message", role, content: [] });

/** [what it is, the event as it comes, the signal] */
const TABLE = [
  ["preview: audio", { type: "response.audio.delta", ...ids, delta: "AAA=" }, sound],
  ["ga: audio", { type: "response.output_audio.delta", ...ids, delta: "AAA=" }, sound],
  ["preview: audio's end", { type: "response.audio.done", ...ids }, { kind: "audio_done", itemId: "i1" }],
  ["ga: audio's end", { type: "response.output_audio.done", ...ids }, { kind: "audio_done", itemId: "i1" }],
  ["preview: transcript grows", { type: "response.audio_transcript.delta", ...ids, delta: "Hel" }, words("assistant", "Hel")],
  ["ga: transcript grows", { type: "response.output_audio_transcript.delta", ...ids, delta: "Hel" }, words("assistant", "Hel")],
  ["preview: transcript's end", { type: "response.audio_transcript.done", ...ids, transcript: "Hello" }, said("assistant", "Hello")],
  ["ga: transcript's end", { type: "response.output_audio_transcript.done", ...ids, transcript: "Hello" }, said("assistant", "Hello")],
  ["preview: text grows", { type: "response.text.delta", ...ids, delta: "Hel" }, words("assistant", "Hel")],
  ["ga: text grows", { type: "response.output_text.delta", ...ids, delta: "Hel" }, words("assistant", "Hel")],
  ["preview: text's end", { type: "response.text.done", ...ids, text: "Hello" }, said("assistant", "Hello")],
  ["ga: text's end", { type: "response.output_text.done", ...ids, text: "Hello" }, said("assistant", "Hello")],
  ["the user's words grow", { type: "conversation.item.input_audio_transcription.delta", item_id: "i1", delta: "Hi" }, words("user", "Hi", null)],
  ["the user's words", { type: "conversation.item.input_audio_transcription.completed", item_id: "i1", content_index: 0, transcript: "Hi." }, said("user", "Hi.", null)],
  ["the user was not understood", { type: "conversation.item.input_audio_transcription.failed", item_id: "i1", error: { code: "DeploymentNotFound" } }, { kind: "transcription_failed", itemId: "i1" }],
  ["preview: an item", { type: "conversation.item.created", previous_item_id: "i0", item: item("assistant") }, { kind: "item", itemId: "i1", previousItemId: "i0", role: "assistant" }],
  ["ga: an item", { type: "conversation.item.added", previous_item_id: null, item: item("user") }, { kind: "item", itemId: "i1", previousItemId: null, role: "user" }],
  ["speech committed", { type: "input_audio_buffer.committed", item_id: "i1", previous_item_id: "i0" }, { kind: "item", itemId: "i1", previousItemId: "i0", role: "user" }],
  ["a system item is nobody's", { type: "conversation.item.added", item: item("system") }, null],
  ["a function call is nobody's", { type: "conversation.item.created", item: { id: "i1", type: "function_call" } }, null],
  ["speech begins", { type: "input_audio_buffer.speech_started", item_id: "i1", audio_start_ms: 12 }, { kind: "speech_started" }],
  ["speech ends", { type: "input_audio_buffer.speech_stopped", item_id: "i1" }, { kind: "speech_stopped" }],
  ["WebRTC: sound begins", { type: "output_audio_buffer.started", response_id: "r1" }, { kind: "playback_started", responseId: "r1" }],
  ["WebRTC: sound ends", { type: "output_audio_buffer.stopped", response_id: "r1" }, { kind: "playback_stopped" }],
  ["WebRTC: sound cut", { type: "output_audio_buffer.cleared", response_id: "r1" }, { kind: "playback_stopped" }],
  ["a response begins", { type: "response.created", response: { id: "r1", status: "in_progress" } }, { kind: "response_started", responseId: "r1" }],
  ["a response ends", { type: "response.done", response: { id: "r1", status: "cancelled" } }, { kind: "response_done", responseId: "r1", status: "cancelled" }],
  ["direct WebSocket is ready", { type: "session.created", session: { id: "s" } }, { kind: "ready", dialect: null, upstream: null, resource: null }],
  ["the broker is ready", { type: "broker.ready", session_id: "s", agent_id: "elena", dialect: "preview", upstream: "voice_live" }, { kind: "ready", dialect: "preview", upstream: "voice_live", resource: null }],
  ["the broker is ready and names the resource", { type: "broker.ready", dialect: "ga", upstream: "openai_realtime", resource: "eastus2" }, { kind: "ready", dialect: "ga", upstream: "openai_realtime", resource: "eastus2" }],
  ["Azure was lost", { type: "broker.resuming", reason: "lost" }, { kind: "resuming", reason: "lost", retryAfterMs: null }],
  ["a quota is awaited", { type: "broker.resuming", reason: "quota", retry_after_s: 2.5 }, { kind: "resuming", reason: "quota", retryAfterMs: 2_500 }],
  ["a wait that is no number", { type: "broker.resuming", reason: "quota", retry_after_s: "soon" }, { kind: "resuming", reason: "quota", retryAfterMs: null }],
  ["Azure is back elsewhere", { type: "broker.resumed", resource: "swedencentral", upstream: "openai_realtime", dialect: "ga" }, { kind: "resumed", resource: "swedencentral", upstream: "openai_realtime", dialect: "ga" }],
  ["the agent changed", { type: "broker.agent.switched", agent_id: "marcus" }, { kind: "agent_switched", agentId: "marcus" }],
  ["the broker's trouble", { type: "broker.error", code: "turn_lost", message: "m", retryable: false }, { kind: "error", code: "turn_lost", message: "m", retryable: false }],
  ["Azure's trouble is seldom the end", { type: "error", error: { type: "server_error", code: "x", message: "m" } }, { kind: "error", code: "x", message: "m", retryable: true }],
  ["the session's time is up", { type: "error", error: { type: "invalid_request_error", code: "session_expired", message: "m" } }, { kind: "session_expired" }],
  ["a cancel that came too late", { type: "error", error: { code: "response_cancel_not_active" } }, null],
  ["an unknown event", { type: "rate_limits.updated" }, null],
  ["a name that every object has", { type: "constructor" }, null],
  ["audio without an item", { type: "response.audio.delta", delta: "AAA=" }, null],
  ["a transcript that is no text", { type: "response.audio_transcript.done", ...ids, transcript: 7 }, null],
  ["a response without an id", { type: "response.created" }, null],
  ["an item that is null", { type: "conversation.item.created", item: null }, null],
  ["no object", "response.done", null],
  ["null", null, null],
];

for (const [name, event, signal] of TABLE) {
  test(`${name} is read as ${signal?.kind ?? "nothing"}`, () => assert.deepEqual(readEvent(event), signal));
}

test("a frame that is no JSON, or binary, is nobody's", () => {
  assert.equal(readFrame("{"), null);
  assert.equal(readFrame(new ArrayBuffer(2)), null);
  assert.deepEqual(readFrame('{"type":"input_audio_buffer.speech_stopped"}'), { kind: "speech_stopped" });
});

test("typed words become an item of ours, and ask for an answer", () => {
  const [create, respond] = textEvents("msg_1", "Hello");
  assert.deepEqual(create.item.content, [{ type: "input_text", text: "Hello" }]);
  assert.equal(create.item.id, "msg_1");
  assert.deepEqual(respond, { type: "response.create" });
});

test("a cut becomes a truncation where the ear was", () => {
  assert.deepEqual(truncateEvent({ itemId: "i1", contentIndex: 2, playedMs: 730 }), {
    type: "conversation.item.truncate",
    item_id: "i1",
    content_index: 2,
    audio_end_ms: 730,
  });
});
