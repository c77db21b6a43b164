import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { WebRtcWebSocketTransport } from "../transports/webrtc-websocket.js";
import { FakeChannel, FakePeer, FakeSocket, fakeAudio, settle } from "./fake-peer.js";

/** A test with fakes of the browser's WebRTC and WebSocket, and with timers that the test moves. */
function callTest(name, body) {
  test(name, async () => {
    const { WebSocket, RTCPeerConnection } = globalThis;
    Object.assign(globalThis, { WebSocket: FakeSocket, RTCPeerConnection: FakePeer });
    Object.assign(FakePeer, { gathers: true, connects: true, opens: true, made: [] });
    mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
    try {
      await body();
    } finally {
      mock.timers.reset();
      Object.assign(globalThis, { WebSocket, RTCPeerConnection });
    }
  });
}

const CREATED = { type: "rtc.call.sdp.created", event_id: "e1", rtc_call_id: "rtc_1", sdp_answer: "v=0\no=-\nm=audio" };
const READY = { type: "broker.ready", dialect: "preview", upstream: "voice_live_webrtc", agent_id: "elena" };

/** A call that is being opened, and what its page hears; `open` settles as `outcome` says. */
async function opening() {
  const signals = [];
  const events = [];
  const drops = [];
  const audio = fakeAudio();
  const connection = { transport: "webrtc_websocket", url: "wss://b/v?media=webrtc", protocols: ["realtime", "ticket.t"] };
  const transport = new WebRtcWebSocketTransport({
    ...{ connection, audio },
    onSignal: (signal) => signals.push(signal),
    onEvent: ({ type }) => events.push(type),
    onDropped: ({ code }) => drops.push(code),
  });
  const call = { transport, audio, signals, events, drops, outcome: "opening" };
  transport.open(new AbortController().signal).then(
    () => (call.outcome = "live"),
    (error) => (call.outcome = error.failure?.code ?? String(error)),
  );
  Object.assign(call, { peer: FakePeer.made.at(-1), socket: FakeSocket.made.at(-1) });
  await settle();
  return call;
}

async function pass(ms) {
  mock.timers.tick(ms);
  await settle();
}

/** A call that is live. */
async function live() {
  const call = await opening();
  call.socket.says(CREATED);
  call.socket.says(READY);
  await settle();
  assert.equal(call.outcome, "live");
  return call;
}

callTest("the offer has one line that can send, its candidates, and goes first", async () => {
  const { peer, socket, outcome } = await opening();
  assert.deepEqual([peer.lines, peer.channel.label], [["audio sendrecv"], "voice-live-events"]);
  assert.deepEqual(socket.protocols, ["realtime", "ticket.t"]);
  assert.deepEqual(socket.sent, [{ type: "rtc.call.sdp.create", sdp_offer: "v=0 with candidates" }]);
  assert.equal(outcome, "opening");
});

callTest("an offer whose candidates never come is sent after three seconds all the same", async () => {
  FakePeer.gathers = false;
  const { socket } = await opening();
  await pass(2_900);
  assert.deepEqual(socket.sent, []);
  await pass(200);
  assert.deepEqual(socket.sent.map(({ sdp_offer }) => sdp_offer), ["v=0 without candidates"]);
});

callTest("the answer's line ends are restored", async () => {
  const { peer } = await live();
  assert.equal(peer.answer, "v=0\r\no=-\r\nm=audio\r\n");
});

callTest("a call is live when the agent is confirmed, in whatever order Azure tells of it", async () => {
  const call = await opening();
  call.socket.says({ type: "session.created", event_id: "e0", session: {} });
  call.socket.says(CREATED);
  await settle();
  assert.equal(call.outcome, "opening"); // nobody talks to a session whose agent is not confirmed
  call.socket.says(READY);
  await settle();
  assert.equal(call.outcome, "live");
  assert.deepEqual(call.events, ["session.created", "rtc.call.sdp.created", "broker.ready"]);
});

callTest("without a data channel a call is live on its audio, two seconds after the media", async () => {
  FakePeer.opens = false;
  const call = await opening();
  call.socket.says(CREATED);
  call.socket.says(READY);
  await settle();
  await pass(1_900);
  assert.equal(call.outcome, "opening");
  await pass(200);
  assert.equal(call.outcome, "live");
  call.peer.channel.open(); // late
  call.peer.channel.says({ type: "response.created", event_id: "r", response: { id: "r1" } });
  assert.equal(call.signals.at(-1).kind, "response_started");
});

callTest("a data channel of the service's own is as good", async () => {
  FakePeer.opens = false;
  const call = await opening();
  call.socket.says(CREATED);
  call.socket.says(READY);
  await settle();
  const own = new FakeChannel("service");
  call.peer.ondatachannel({ channel: own });
  own.open();
  await settle();
  assert.equal(call.outcome, "live");
  own.says({ type: "response.created", event_id: "r", response: { id: "r1" } });
  assert.equal(call.signals.at(-1).kind, "response_started");
});

callTest("an event that comes on both channels counts once, and what the page sends goes over the socket", async () => {
  const { peer, socket, signals, events, transport } = await live();
  const done = { type: "response.audio_transcript.done", event_id: "t1", response_id: "r", item_id: "a", transcript: "Hello." };
  peer.channel.says(done);
  socket.says(done);
  socket.says({ type: "response.output_item.done", event_id: "i1", item: { type: "function_call", call_id: "c", name: "show", arguments: "{}" } });
  peer.channel.says({ type: "response.done", event_id: "d1", response: { id: "r", status: "completed" } });
  peer.channel.says({ type: "response.output_item.done", event_id: "i1", item: { type: "function_call", call_id: "c", name: "show", arguments: "{}" } });
  assert.deepEqual(signals.map(({ kind }) => kind), ["ready", "transcript_done", "tool_call", "response_done"]);
  assert.equal(events.filter((type) => type === done.type).length, 1);
  transport.send({ type: "response.create" });
  assert.deepEqual(peer.channel.sent, []);
  assert.equal(socket.sent.at(-1).type, "response.create");
  assert.deepEqual([transport.reportsTurns, transport.switchesAgents], [false, false]);
});

for (const [what, happens, code] of [
  ["the broker refuses", ({ socket }) => socket.onclose({ code: 4502, reason: "" }), "azure_dropped"],
  ["the ticket is spent", ({ socket }) => socket.onclose({ code: 4401, reason: "" }), "ticket_spent"],
  ["the broker has no such route", ({ socket }) => socket.onclose({ code: 1006, reason: "" }), "socket_closed"],
  ["Azure refuses the offer", ({ socket }) => socket.says({ type: "rtc.call.error", error: { code: "bad_sdp_offer" } }), "sdp_refused"],
  ["Azure does not answer", () => pass(5_600), "sdp_timeout"],
  ["Azure's agent is not confirmed", async ({ socket }) => (socket.says(CREATED), await settle(), await pass(5_100)), "socket_timeout"],
  ["ICE fails", async ({ socket, peer }) => (socket.says(CREATED), await settle(), peer.is("failed")), "ice_failed"],
]) {
  callTest(`where ${what} the next connection is told of ${code}`, async () => {
    FakePeer.connects = FakePeer.opens = what !== "ICE fails";
    const call = await opening();
    await happens(call);
    await settle();
    assert.equal(call.outcome, code);
    assert.deepEqual(call.drops, []);
    call.transport.close();
    assert.deepEqual([call.peer.closed, call.socket.closedWith], [true, 1000]);
  });
}

callTest("media that never comes is blocked", async () => {
  FakePeer.connects = FakePeer.opens = false;
  const call = await opening();
  call.socket.says(CREATED);
  call.socket.says(READY);
  await settle();
  await pass(5_100);
  assert.equal(call.outcome, "ice_timeout");
});

callTest("a lost control socket ends the call, though media flows", async () => {
  const { socket, peer, drops } = await live();
  socket.onclose({ code: 4502, reason: "" });
  assert.deepEqual([drops, peer.closed], [["azure_dropped"], true]);
});

callTest("an expired session ends the call once", async () => {
  const { socket, drops } = await live();
  socket.says({ type: "error", event_id: "x", error: { code: "session_expired" } });
  socket.onclose?.({ code: 1001, reason: "" });
  assert.deepEqual(drops, ["session_limit"]);
});

callTest("a moment without a path is forgiven, five seconds are not", async () => {
  const { peer, drops } = await live();
  peer.is("disconnected");
  await pass(54);
  peer.is("connected");
  await pass(1_000);
  assert.deepEqual(drops, []);
  peer.is("disconnected");
  for (let second = 0; second < 5; second += 1) {
    peer.received += 1; // something may still trickle in
    await pass(1_000);
  }
  assert.deepEqual(drops, ["ice_failed"]);
});

callTest("a peer of which nothing arrives any more is noticed within ten seconds, without a word of the browser's", async () => {
  const { peer, drops } = await live();
  peer.received = 1;
  for (let second = 0; second < 60; second += 1) {
    peer.received += second % 4 === 0 ? 1 : 0; // a silent agent: ICE's own checks alone
    await pass(1_000);
  }
  assert.deepEqual(drops, []);
  for (let second = 0; second < 11; second += 1) await pass(1_000);
  assert.deepEqual(drops, ["ice_failed"]);
});

callTest("a browser that counts nothing is believed", async () => {
  const { drops } = await live();
  for (let second = 0; second < 30; second += 1) await pass(1_000);
  assert.deepEqual(drops, []);
});

callTest("a data channel that closes ends the call, but not while another is open", async () => {
  const { peer, drops } = await live();
  const own = new FakeChannel("service");
  peer.ondatachannel({ channel: own });
  own.open();
  peer.channel.shut();
  assert.deepEqual(drops, []);
  own.shut();
  assert.deepEqual(drops, ["channel_closed"]);
});

callTest("an interruption mutes what is left of the answer, for a second at most", async () => {
  const { transport, socket, audio } = await live();
  await transport.interrupt();
  assert.equal(socket.sent.at(-1).type, "response.cancel");
  await pass(1_000);
  assert.deepEqual(audio.done.filter((note) => note.startsWith("mute")), ["mute true", "mute false"]);
  await transport.yieldToUser();
  socket.says({ type: "output_audio_buffer.stopped", event_id: "s" });
  assert.deepEqual(audio.done.filter((note) => note.startsWith("mute")).slice(2), ["mute true", "mute false"]);
});
