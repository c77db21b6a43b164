import assert from "node:assert/strict";
import { afterEach, mock, test } from "node:test";

import { LiveCall } from "../transports/live.js";
import { FakePeer, FakeSocket, fakeAudio, settle } from "./fake-peer.js";

const { fetch: realFetch, RTCPeerConnection: realPeer, WebSocket: realSocket } = globalThis;
afterEach(() => {
  Object.assign(globalThis, { fetch: realFetch, RTCPeerConnection: realPeer, WebSocket: realSocket });
  mock.timers.reset();
});

/** A call of GPT-Live's that is open, and what its page is told of tools. */
async function liveCall(url = "https://b.example/voice/api/v1/voice/realtime/calls") {
  Object.assign(globalThis, { RTCPeerConnection: FakePeer, WebSocket: FakeSocket });
  FakeSocket.made = [];
  globalThis.fetch = async () => new Response("v=0", { status: 201, headers: { Location: "/api/v1/voice/realtime/calls/ours.1" } });
  const asked = [];
  const onSignal = (signal) => signal.kind === "tool_call" && asked.push(signal.callId);
  const connection = { transport: "webrtc_relay", url, token: "session.token", dialect: "live" };
  const call = new LiveCall({ connection, audio: fakeAudio(), request: (...sent) => fetch(...sent), onSignal, onDropped() {} });
  await call.open(new AbortController().signal);
  return { call, asked, channel: FakePeer.made.at(-1).channel };
}

const called = (callId) => ({
  type: "response.event",
  event: { type: "response.output_item.done", item: { type: "function_call", call_id: callId, name: "show_map", arguments: "{}" } },
});
const output = (callId) => ({ type: "conversation.item.create", item: { type: "function_call_output", call_id: callId, output: "shown" } });

test("a call whose page has no tools has no line of its own", async () => {
  const { call } = await liveCall();
  call.send(output("c1"));
  assert.deepEqual(FakeSocket.made, []);
  call.close();
});

test("tools are called and answered over the broker, and never over the data channel", async () => {
  const { call, asked, channel } = await liveCall();
  call.listenForCalls();
  call.listenForCalls();
  const [line, ...more] = FakeSocket.made;
  assert.deepEqual(more, []);
  assert.equal(String(line.url), "wss://b.example/voice/v1/live/sessions/ours.1/attach");
  assert.deepEqual(line.protocols, ["realtime", "ticket.session.token"]);
  call.send(output("c0")); // it waits for the connection
  await settle();
  line.says(called("c1"));
  line.says({ type: "session.input_transcript.delta", delta: "said on both", start_ms: 0, end_ms: 9 });
  assert.deepEqual(asked, ["c1"]);
  call.send(output("c1"));
  assert.deepEqual(line.sent.map(({ type, item }) => [type, item.call_id]), [["response.item.create", "c0"], ["response.item.create", "c1"]]);
  assert.deepEqual(channel.sent, []);
  call.close();
  assert.equal(line.closedWith, 1000);
  line.says(called("c2"));
  assert.deepEqual(asked, ["c1"]);
});

test("a line that breaks is opened again, a few times where it brings nothing", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { call, asked } = await liveCall("https://b.example/realtime/calls");
  call.listenForCalls();
  await settle();
  const breaks = async () => {
    const line = FakeSocket.made.at(-1);
    line.readyState = 3;
    line.onclose();
    mock.timers.tick(10_000);
    await settle();
  };
  await breaks();
  assert.equal(FakeSocket.made.length, 2);
  FakeSocket.made[1].says(called("c1"));
  assert.deepEqual(asked, ["c1"]);
  for (let tries = 0; tries < 20; tries += 1) await breaks();
  assert.equal(FakeSocket.made.length, 10);
  call.close();
});
