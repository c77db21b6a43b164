import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { WebRtcTransport } from "../transports/webrtc.js";
import { FakePeer, fakeAudio } from "./fake-peer.js";

const { fetch: realFetch, RTCPeerConnection: realPeer } = globalThis;
afterEach(() => Object.assign(globalThis, { fetch: realFetch, RTCPeerConnection: realPeer }));

/** Opens and closes a call over `transport`; gives every request that it made. */
async function requestsOf(transport) {
  const asked = [];
  globalThis.RTCPeerConnection = FakePeer;
  globalThis.fetch = async (url, init) => {
    asked.push({ url: String(url), method: init.method, headers: init.headers });
    return new Response("v=0", { status: 201, headers: { Location: "/realtime/calls/ours" } });
  };
  const connection = { transport, url: "https://b.example/realtime/calls", token: "t" };
  const call = new WebRtcTransport({ connection, audio: fakeAudio(), request: (...sent) => fetch(...sent), onSignal() {}, onDropped() {} });
  await call.open(new AbortController().signal);
  call.close();
  return asked;
}

test("a relayed offer and its hang-up prove the session in both headers", async () => {
  const asked = await requestsOf("webrtc_relay");
  assert.deepEqual(asked.map(({ method }) => method), ["POST", "DELETE"]);
  for (const { headers } of asked) {
    assert.equal(headers.Authorization, "Bearer t");
    assert.equal(headers["X-Session-Token"], "t");
  }
});

test("Azure gets its own token, and no header of the broker's", async () => {
  const [{ headers }, ...rest] = await requestsOf("webrtc");
  assert.deepEqual(headers, { "Content-Type": "application/sdp", Authorization: "Bearer t" });
  assert.deepEqual(rest, []);
});
