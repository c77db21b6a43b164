import assert from "node:assert/strict";
import { test } from "node:test";

import { isEphemeral, readPlan } from "../plan.js";

const WEBRTC = { transport: "webrtc", url: "https://x.openai.azure.com/openai/v1/realtime/calls", token: "ek_1", expires_in_s: 59 };
const PROXY = { transport: "websocket_proxy", url: "wss://b/api/v1/voice/voicelive/s", protocols: ["realtime", "ticket.t"], expires_in_s: 180 };
const BODY = { session_id: "s", session_token: "t", agent_id: "elena", degraded: false, connections: [WEBRTC, PROXY] };

test("a plan keeps the order of its connections and the time it came", () => {
  const plan = readPlan(BODY, 12);
  assert.deepEqual(plan.connections.map(({ transport }) => transport), ["webrtc", "websocket_proxy"]);
  assert.equal(plan.receivedAtMs, 12);
  assert.equal(plan.connections[0].expiresInS, 59);
});

test("Voice Live's call is signalled over the broker's socket, with a ticket", () => {
  const call = { ...PROXY, transport: "webrtc_websocket", url: "wss://b/api/v1/voice/voicelive/s?media=webrtc", dialect: "preview" };
  const [read] = readPlan({ ...BODY, connections: [call, PROXY] }, 0).connections;
  assert.deepEqual([read.transport, read.protocols, read.token, read.dialect], ["webrtc_websocket", PROXY.protocols, null, "preview"]);
  assert.equal(isEphemeral(read), true);
  for (const wrong of [{ protocols: [] }, { url: "https://b/v" }, { url: "ws://b.example/v" }]) {
    assert.equal(readPlan({ ...BODY, connections: [{ ...call, ...wrong }] }, 0), null);
  }
});

test("only the wanted transports are kept", () => {
  assert.deepEqual(readPlan(BODY, 0, ["websocket_proxy"]).connections.map(({ transport }) => transport), ["websocket_proxy"]);
});

test("a connection keeps the resource that it leads to", () => {
  const connections = [{ ...WEBRTC, resource: "eastus2" }, PROXY];
  assert.deepEqual(readPlan({ ...BODY, connections }, 0).connections.map(({ resource }) => resource), ["eastus2", null]);
});

for (const [name, said, ms] of [
  ["when to ask again", 7.2, 7_200],
  ["no time", undefined, 5_000],
  ["a time that is no number", "soon", 5_000],
  ["at once", 0, 1_000],
  ["in an hour", 3_600, 60_000],
]) {
  test(`a poor plan that says ${name} means ${ms} ms, with or without connections`, () => {
    for (const connections of [BODY.connections, []]) {
      const plan = readPlan({ ...BODY, outlook: "poor", retry_after_s: said, connections }, 0);
      assert.deepEqual([plan.outlook, plan.retryAfterMs, plan.connections.length], ["poor", ms, connections.length]);
    }
  });
}

test("a plan is good where it says nothing else, and then it names no wait", () => {
  for (const outlook of [undefined, "good", "splendid"]) {
    const plan = readPlan({ ...BODY, outlook, retry_after_s: 7 }, 0);
    assert.deepEqual([plan.outlook, plan.retryAfterMs], ["good", 0]);
  }
});

for (const [name, body] of [
  ["no object", null],
  ["no session", { ...BODY, session_id: "" }],
  ["no session token", { ...BODY, session_token: undefined }],
  ["no connections", { ...BODY, connections: [] }],
  ["connections of an unknown kind only", { ...BODY, connections: [{ ...WEBRTC, transport: "pigeon" }] }],
  ["connections that are no objects", { ...BODY, connections: [null, 7] }],
  ["WebRTC without a token", { ...BODY, connections: [{ ...WEBRTC, token: null }] }],
  ["a WebSocket without protocols", { ...BODY, connections: [{ ...PROXY, protocols: [] }] }],
  ["SDP over plain http to another machine", { ...BODY, connections: [{ ...WEBRTC, url: "http://x.example/calls" }] }],
  ["audio over plain ws to another machine", { ...BODY, connections: [{ ...PROXY, url: "ws://x.example/calls" }] }],
  ["a URL that is none", { ...BODY, connections: [{ ...WEBRTC, url: "calls" }] }],
]) {
  test(`a plan with ${name} is no plan`, () => assert.equal(readPlan(body, 0), null));
}

test("plain http and ws will do on this very machine", () => {
  const connections = [{ ...WEBRTC, url: "http://127.0.0.1:9100/calls" }, { ...PROXY, url: "ws://localhost:8080/v" }];
  assert.equal(readPlan({ ...BODY, connections }, 0).connections.length, 2);
});

const connection = (change) => readPlan({ ...BODY, connections: [{ ...WEBRTC, ...change }] }, 0).connections[0];

for (const [name, change, verdict] of [
  ["an ephemeral token", {}, true],
  ["an ephemeral token of another shape", { token: "b5a1c4f0-eph" }, true],
  ["a resource key of 32 hexadecimal digits", { token: "0123456789abcdef0123456789ABCDEF" }, false],
  ["a resource key of 84 characters", { token: "A1b2".repeat(21) }, false],
  ["an OpenAI key", { token: "sk-proj-abc" }, false],
  ["an Entra token", { token: "eyJhbGciOi.eyJhdWQiOi.c2ln" }, false],
  ["a token that never expires", { expires_in_s: null }, false],
  ["a token that lives for days", { expires_in_s: 200_000 }, false],
  ["the broker's own token for the relay", { transport: "webrtc_relay", token: "eyJhbGciOi.eyJhdWQiOi.c2ln" }, true],
  ["an ephemeral token as subprotocol", { transport: "websocket", url: "wss://x/v1", protocols: ["realtime", "openai-insecure-api-key.ek_1"], token: null }, true],
  ["a key as subprotocol", { transport: "websocket", url: "wss://x/v1", protocols: ["realtime", "openai-insecure-api-key.sk-1"], token: null }, false],
  ["a direct WebSocket without any credential", { transport: "websocket", url: "wss://x/v1", protocols: ["realtime"], token: null }, false],
]) {
  test(`${name} is ${verdict ? "taken" : "refused"}`, () => assert.equal(isEphemeral(connection(change)), verdict));
}
