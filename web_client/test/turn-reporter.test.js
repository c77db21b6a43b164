import assert from "node:assert/strict";
import { test } from "node:test";

import { KEEPALIVE_BUDGET_BYTES, TurnReporter } from "../turn-reporter.js";

const turnReport = (turnId, content = "words") => ({
  turn: { turnId, role: "user", content, sequence: 1, interrupted: false, createdAt: "2026-01-01T00:00:00Z" },
  agentId: "elena",
  sessionId: "s",
  sessionToken: "t",
});

/** A broker that answers as told: `answers` are errors to reject with, or null to acknowledge. */
function setUp(answers = []) {
  const posted = [];
  const lost = [];
  const slept = [];
  const reporter = new TurnReporter({
    post: async ({ turn }, { keepalive }) => {
      posted.push([turn.turnId, keepalive]);
      const answer = answers.shift();
      if (answer) throw answer;
    },
    onLost: ({ turn }) => lost.push(turn.turnId),
    sleep: async (ms) => void slept.push(ms),
    random: () => 1,
  });
  return { reporter, posted, lost, slept };
}

const refused = (details) => Object.assign(new Error("refused"), details);

test("turns go out one after the other, in their order", async () => {
  const { reporter, posted } = setUp();
  for (const id of ["a", "b", "c"]) reporter.enqueue(turnReport(id));
  await reporter.drained();
  assert.deepEqual(posted.map(([id]) => id), ["a", "b", "c"]);
  assert.equal(reporter.pending, 0);
});

test("a turn is repeated until it is acknowledged, and nothing overtakes it", async () => {
  const { reporter, posted, lost } = setUp([refused({ retryable: true }), refused({ retryable: true })]);
  reporter.enqueue(turnReport("a"));
  reporter.enqueue(turnReport("b"));
  await reporter.drained();
  assert.deepEqual(posted.map(([id]) => id), ["a", "a", "a", "b"]);
  assert.deepEqual(lost, []);
});

test("waits double, and Retry-After is obeyed", async () => {
  const { reporter, slept } = setUp([refused({ retryable: true }), refused({ retryable: true, retryAfterMs: 9_000 }), refused({ retryable: true })]);
  reporter.enqueue(turnReport("a"));
  await reporter.drained();
  assert.deepEqual(slept, [250, 9_000, 1_000]);
});

test("a turn that is refused for good is told lost, and the next goes out", async () => {
  const { reporter, posted, lost } = setUp([refused({ retryable: false })]);
  reporter.enqueue(turnReport("a"));
  reporter.enqueue(turnReport("b"));
  await reporter.drained();
  assert.deepEqual(lost, ["a"]);
  assert.deepEqual(posted.map(([id]) => id), ["a", "b"]);
});

test("reporting goes on after the queue was empty", async () => {
  const { reporter, posted } = setUp();
  reporter.enqueue(turnReport("a"));
  await reporter.drained();
  reporter.enqueue(turnReport("b"));
  await reporter.drained();
  assert.equal(posted.length, 2);
});

test("a body too large for keepalive goes without it", async () => {
  const { reporter, posted } = setUp();
  reporter.enqueue(turnReport("a", "x".repeat(70_000)));
  reporter.enqueue(turnReport("b"));
  await reporter.drained();
  assert.deepEqual(posted, [["a", false], ["b", true]]);
});

test("at the page's end all that is left goes at once, within what the browser allows to be in flight", () => {
  const inFlight = [];
  const reporter = new TurnReporter({
    post: ({ turn }, { keepalive }) => {
      inFlight.push([turn, keepalive]);
      return new Promise(() => {});
    },
    onLost: () => {},
  });
  for (let n = 0; n < 20; n += 1) reporter.enqueue(turnReport(`t${n}`, "é".repeat(4_000)));
  reporter.flushOnClose();
  assert.ok(inFlight.every(([, keepalive]) => keepalive));
  const bytes = inFlight.reduce((sum, [turn]) => sum + Buffer.byteLength(turn.content), 0);
  assert.ok(bytes <= KEEPALIVE_BUDGET_BYTES && bytes > KEEPALIVE_BUDGET_BYTES - 10_000, `${bytes} bytes in flight`);
  assert.equal(reporter.pending, 0);
});

test("a broker away for hours costs bounded memory, and each turn given up is told", async () => {
  const lost = [];
  const reporter = new TurnReporter({
    post: () => new Promise(() => {}),
    onLost: ({ turn }) => lost.push(turn.turnId),
  });
  for (let n = 0; n < 600; n += 1) reporter.enqueue(turnReport(`t${n}`));
  assert.equal(reporter.pending, 500);
  assert.equal(lost.length, 100);
  assert.equal(lost[0], "t1");
});
