import assert from "node:assert/strict";
import { test } from "node:test";

import { CallEvents } from "../call-events.js";

const ATTACHED = 'id: 1\ndata: {"type":"broker.attached","call_id":"ours"}\n\n';
const TOOL = 'id: 2\ndata: {"type":"broker.tool","name":"look_up","call_id":"c1","state":"running"}\n\n';
const DETACHED = 'id: 3\ndata: {"type":"broker.detached","call_id":"ours"}\n\n';

/** A stream of these pieces, which then ends. */
function stream(...pieces) {
  const body = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(new TextEncoder().encode(piece));
      controller.close();
    },
  });
  return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
}

/** Events of a call whose requests get these answers, in turn; then 404. */
function following(...answers) {
  const pauses = [];
  const asked = [];
  const heard = [];
  const leads = [];
  const events = new CallEvents({
    request: async (path, init) => {
      asked.push({ path, ...init });
      const next = answers.shift() ?? new Response(null, { status: 404 });
      if (next instanceof Error) throw next;
      return next;
    },
    sessionId: "s1",
    sessionToken: "token",
    onSignal: (signal) => heard.push(signal.kind),
    onLead: (isLed) => leads.push(isLed),
    pause: async (ms) => void pauses.push(ms),
  });
  return { events, asked, heard, leads, pauses };
}

test("a call of Azure's is attached first, and then read", async () => {
  const { events, asked, heard, leads } = following(Response.json({ call_id: "ours" }, { status: 202 }), stream(ATTACHED, TOOL, DETACHED));
  await events.follow({ id: "rtc_1", isOurs: false });
  assert.equal(asked[0].path, "/api/v1/voice/realtime/calls/attach");
  assert.deepEqual(JSON.parse(asked[0].body), { session_id: "s1", call_id: "rtc_1" });
  assert.equal(asked[1].path, "/api/v1/voice/realtime/calls/ours/events");
  assert.equal(asked[1].headers.Authorization, "Bearer token");
  assert.deepEqual(heard, ["tool"]);
  assert.deepEqual(leads, [true, false]);
});

test("a refused call goes on unseen", async () => {
  const { events, asked, leads } = following(new Response(null, { status: 403 }));
  await events.follow({ id: "rtc_1", isOurs: false });
  assert.equal(asked.length, 1);
  assert.deepEqual(leads, []);
});

test("while the broker has no store the page asks for itself, and waits as long as it is told", async () => {
  const busy = () => new Response(null, { status: 503, headers: { "Retry-After": "30" } });
  const { events, asked, leads, pauses } = following(busy(), busy(), Response.json({ call_id: "ours" }, { status: 202 }), stream(ATTACHED));
  await events.follow({ id: "rtc_1", isOurs: false });
  assert.deepEqual(pauses.slice(0, 2), [30_000, 30_000]);
  assert.equal(asked.filter(({ method }) => method === "POST").length, 3);
  assert.deepEqual(leads, [true, false]); // not before it is attached
});

test("a call that the broker can't tell for the page's own goes on, unless that is not permitted", async () => {
  const warned = console.warn;
  console.warn = () => {};
  for (const [retryable, told] of [[false, []], [true, ["error"]]]) {
    const refusal = `data: ${JSON.stringify({ type: "broker.error", code: "not_verified", message: "no", retryable })}\n\n`;
    const { events, heard } = following(stream(refusal));
    await events.follow({ id: "ours", isOurs: true });
    assert.deepEqual(heard, told);
  }
  console.warn = warned;
});

test("a broken stream is read on from where it was", async () => {
  const cut = TOOL.length - 10;
  const { events, asked, heard } = following(stream(ATTACHED + TOOL.slice(0, cut)), new TypeError("offline"), stream(TOOL));
  await events.follow({ id: "ours", isOurs: true });
  assert.equal(asked[0].headers["Last-Event-ID"], undefined);
  assert.equal(asked[1].headers["Last-Event-ID"], "1");
  assert.deepEqual(heard, ["tool"]);
  assert.ok(asked.length < 16); // bounded
});

test("an event may come in pieces", async () => {
  const { events, leads, heard } = following(stream("retry: 1000\n\n", ATTACHED.slice(0, 20), ATTACHED.slice(20) + ":\n\n" + TOOL));
  await events.follow({ id: "ours", isOurs: true });
  assert.equal(leads[0], true);
  assert.deepEqual(heard, ["tool"]);
});

test("a closed call is read no more", async () => {
  const { events, asked, leads } = following(stream(ATTACHED));
  events.close();
  await events.follow({ id: "ours", isOurs: true });
  assert.deepEqual([asked.length, leads.length, events.leads], [0, 0, false]);
});
