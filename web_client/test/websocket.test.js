import assert from "node:assert/strict";
import { test } from "node:test";

import { WebSocketTransport } from "../transports/websocket.js";

/** A WebSocket that a test speaks through. */
class FakeSocket {
  static OPEN = 1;
  readyState = FakeSocket.OPEN;
  bufferedAmount = 0;
  sent = [];

  constructor() {
    FakeSocket.last = this;
  }

  send(text) {
    this.sent.push(JSON.parse(text).type);
  }

  close() {}

  says(event) {
    this.onmessage({ data: JSON.stringify(event) });
  }
}

/** A proxied talk that is ready, what its page hears, and what its player is told. */
async function talking(words = []) {
  globalThis.WebSocket = FakeSocket;
  const played = [];
  const signals = [];
  const drops = [];
  const audio = {
    takeWords: () => words.splice(0),
    startPlayback: () => undefined,
    startCapture: (take) => (audio.capture = take),
    stopCapture: () => undefined,
    stopPlayback: () => undefined,
    play: (itemId) => played.push(`play ${itemId}`),
    finish: (itemId) => played.push(`finish ${itemId}`),
    clear: async () => (played.push("clear"), []),
  };
  const connection = { transport: "websocket_proxy", url: "wss://b/v", protocols: ["realtime", "ticket.t"] };
  const transport = new WebSocketTransport({
    connection,
    audio,
    onSignal: (signal) => signals.push(signal.kind),
    onDropped: (reason) => drops.push(reason.code),
  });
  const opening = transport.open(new AbortController().signal);
  const socket = FakeSocket.last;
  socket.says({ type: "broker.ready", dialect: "preview", upstream: "voice_live" });
  await opening;
  return { transport, socket, audio, played, signals, drops };
}

/** As `talking`, where the network has not taken a byte of the first words. */
async function talkingSlowly() {
  const { send } = FakeSocket.prototype;
  FakeSocket.prototype.send = function (text) {
    this.bufferedAmount += text.length;
    send.call(this, text);
  };
  try {
    return await talking(Array.from({ length: 150 }, () => new Int16Array(480)));
  } finally {
    FakeSocket.prototype.send = send;
  }
}

const sound = (type, responseId, itemId) => ({ type, response_id: responseId, item_id: itemId, content_index: 0, delta: "AAA=" });
const done = (responseId, status) => ({ type: "response.done", response: { id: responseId, status } });

test("an answer that Azure's loss cut short is played as far as it came, and the next one follows in the other dialect", async () => {
  const { socket, played, signals, drops, audio } = await talking();
  socket.says({ type: "response.created", response: { id: "r1" } });
  socket.says(sound("response.audio.delta", "r1", "a1"));
  socket.says(done("r1", "cancelled"));
  socket.says({ type: "broker.resuming", reason: "lost" });
  audio.capture(new Int16Array(480));
  socket.says({ type: "broker.resumed", resource: "swedencentral", upstream: "openai_realtime", dialect: "ga" });
  socket.says(sound("response.output_audio.delta", "r2", "a2"));
  assert.deepEqual(played, ["play a1", "finish a1", "finish a1", "play a2"]);
  assert.deepEqual(signals.filter((kind) => kind.startsWith("resum")), ["resuming", "resumed"]);
  assert.deepEqual(drops, []);
  assert.deepEqual(socket.sent, ["input_audio_buffer.append"]);
});

test("a cut answer that was never ended is over once the talk resumes", async () => {
  const { socket, transport } = await talking();
  socket.says({ type: "response.created", response: { id: "r1" } });
  socket.says({ type: "broker.resuming", reason: "silent" });
  await transport.interrupt();
  assert.deepEqual(socket.sent, []); // no `response.cancel` for an answer that is gone
});

test("unsent audio ends a connection, but not while the proxy has no Azure or the rest still goes out", async () => {
  const { socket, audio, drops } = await talking();
  socket.says({ type: "broker.resuming", reason: "quota", retry_after_s: 20 });
  socket.bufferedAmount = 1e6;
  audio.capture(new Int16Array(480));
  socket.says({ type: "broker.resumed", resource: "eastus2", upstream: "voice_live", dialect: "preview" });
  audio.capture(new Int16Array(480));
  assert.deepEqual([drops, socket.sent], [[], []]);
  socket.bufferedAmount = 0;
  audio.capture(new Int16Array(480));
  socket.bufferedAmount = 1e6;
  audio.capture(new Int16Array(480));
  assert.deepEqual([drops, socket.sent], [["socket_closed"], ["input_audio_buffer.append"]]);
});

test("what was said before the talk was live goes out first, and its bytes end no connection", async () => {
  const words = Array.from({ length: 150 }, () => new Int16Array(480));
  const { socket, audio, drops } = await talking(words);
  assert.deepEqual([socket.sent.length, words.length], [150, 0]);
  audio.capture(new Int16Array(480));
  assert.deepEqual([socket.sent.length, drops], [151, []]);
});

test("the first words may wait to be sent, and after them as much as ever", async () => {
  const { transport, socket, audio, drops } = await talkingSlowly();
  audio.capture(new Int16Array(480));
  socket.bufferedAmount = 380_000;
  audio.capture(new Int16Array(480));
  assert.deepEqual(drops, []);
  socket.bufferedAmount = 100_000; // they have gone out
  audio.capture(new Int16Array(480));
  socket.bufferedAmount = 380_000;
  audio.capture(new Int16Array(480));
  assert.deepEqual(drops, ["socket_closed"]);
  transport.close();
});

test("the end of an answer beside the conversation does not end the sound of another", async () => {
  const { socket, played } = await talking();
  socket.says(sound("response.audio.delta", "r1", "a1"));
  socket.says({ type: "response.created", response: { id: "beside" } });
  socket.says(done("beside", "completed"));
  assert.deepEqual(played, ["play a1"]);
});

test("a talk that its agent has ended is not begun again, one at its time limit is", async () => {
  for (const [reason, code] of [["the agent has ended the talk", "ended_by_agent"], ["the talk has reached its longest time", "session_limit"]]) {
    const { socket, drops } = await talking();
    socket.onclose({ code: 1000, reason });
    assert.deepEqual(drops, [code]);
  }
});
