import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { TalkReporter } from "../talk-reporter.js";

/** A broker that answers as told: `answers` are errors to reject with, or null for a 204. */
function setUp(answers = []) {
  const posted = [];
  const reporter = new TalkReporter({
    post: async (report, token) => {
      posted.push({ ...report, token });
      const answer = answers.shift();
      if (answer) throw answer;
    },
  });
  reporter.about("session-1", "token-1");
  return { reporter, posted };
}

const refused = (details) => Object.assign(new Error("refused"), details);
const media = (lost) => async () => ({ rttMs: 40, jitterMs: 3, lost });

test("a connection's end tells what was measured", async () => {
  const { reporter, posted } = setUp();
  reporter.failed("webrtc", "ice_failed");
  reporter.begin("webrtc_relay", 840.4, media(5));
  reporter.turn(620);
  await reporter.end();
  assert.deepEqual(posted, [
    {
      session_id: "session-1",
      transport: "webrtc_relay",
      token: "token-1",
      live_after_ms: 840,
      turns: [{ turn_ms: 620 }],
      rtc: { rtt_ms: 40, jitter_ms: 3, lost: 5 },
      failures: [{ transport: "webrtc", reason: "ice_failed" }],
    },
  ]);
  await reporter.end();
  assert.equal(posted.length, 1);
});

test("a report comes each minute, with what is new", async () => {
  mock.timers.enable({ apis: ["setInterval"] });
  try {
    const { reporter, posted } = setUp();
    let lost = 5;
    reporter.begin("webrtc", 100, () => media(lost)());
    for (const turn of [500, 600]) {
      reporter.turn(turn);
      mock.timers.tick(60_000);
      await new Promise((resolve) => setImmediate(resolve));
      lost += 2;
    }
    assert.deepEqual(posted.map(({ turns, rtc, live_after_ms }) => [turns[0].turn_ms, rtc.lost, live_after_ms]), [
      [500, 5, 100],
      [600, 2, undefined],
    ]);
    await reporter.end();
  } finally {
    mock.timers.reset();
  }
});

test("what was not taken comes again, unless it is refused", async () => {
  const { reporter, posted } = setUp([refused({ status: 503, retryable: true }), null, refused({ status: 422, retryable: false })]);
  for (const turn of [500, 600, 700]) {
    reporter.begin("webrtc", null, undefined);
    reporter.turn(turn);
    await reporter.end();
  }
  assert.deepEqual(posted.map(({ turns }) => turns.map(({ turn_ms }) => turn_ms)), [[500], [500, 600], [700]]);
});

test("an older broker is asked once", async () => {
  const { reporter, posted } = setUp([refused({ status: 404, retryable: false })]);
  for (const turn of [500, 600]) {
    reporter.begin("webrtc", null, undefined);
    reporter.turn(turn);
    await reporter.end();
  }
  assert.equal(posted.length, 1);
});

test("statistics that fail leave the rest", async () => {
  const { reporter, posted } = setUp();
  reporter.begin("webrtc", 100, async () => Promise.reject(new Error("closed")));
  await reporter.end();
  assert.deepEqual([posted[0].live_after_ms, posted[0].rtc], [100, undefined]);
});

test("a talk that never came about tells why", async () => {
  const { reporter, posted } = setUp();
  reporter.failed("webrtc", "sdp_timeout");
  reporter.failed("websocket_proxy", "socket_timeout");
  await reporter.end();
  assert.equal(posted.length, 0);
  await reporter.end({ isLast: true });
  assert.deepEqual([posted[0].transport, posted[0].failures.length], ["websocket_proxy", 2]);
});

test("nothing is sent without a session, and no absurd number", async () => {
  const { reporter, posted } = setUp();
  reporter.about("", "");
  reporter.begin("webrtc", 100, undefined);
  await reporter.end();
  reporter.about("session-1", "token-1");
  reporter.begin("webrtc", 10_000_000, undefined);
  reporter.turn(10_000_000);
  reporter.flushOnClose();
  assert.deepEqual(posted.map(({ live_after_ms, turns }) => [live_after_ms, turns]), [[100, undefined]]);
});
