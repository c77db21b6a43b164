import assert from "node:assert/strict";
import { test } from "node:test";

import { ActivityWatch } from "../activity.js";

function watch() {
  let nowMs = 0;
  const told = [];
  const activity = new ActivityWatch({ onChange: (now) => told.push(now), onAnswered: (ms) => told.push(ms), clock: () => nowMs });
  return { activity, told, at: (ms) => (nowMs = ms), take: (...signals) => signals.forEach((signal) => activity.handle(signal)) };
}
const STARTED = (responseId) => ({ kind: "response_started", responseId });
const SOUND = (responseId) => ({ kind: "playback_started", responseId });
const [SPEAKS, SPOKE, STOPPED] = ["speech_started", "speech_stopped", "playback_stopped"].map((kind) => ({ kind }));

test("a turn is listened to, thought about and answered, and its wait is measured once", () => {
  const { told, at, take } = watch();
  take(SPEAKS, SPOKE);
  at(640);
  take(STARTED("r"), SOUND("r"), SOUND("r"), STOPPED);
  assert.deepEqual(told, ["thinking", "speaking", 640, "listening"]);
});

test("the late sound of an answer that the user spoke over is no answer", () => {
  const { told, at, take } = watch();
  take(SPEAKS, SPOKE, STARTED("old"), SPEAKS, SPOKE);
  at(100);
  take(SOUND("old"));
  assert.deepEqual(told, ["thinking", "listening", "thinking", "speaking"]);
});

test("a failed answer, a greeting and a typed text have no wait", () => {
  const { activity, told, take } = watch();
  take(SOUND("greeting"), STOPPED, SPOKE, { kind: "response_done", responseId: "r", status: "failed" }, SOUND("r2"), STOPPED);
  activity.typed();
  take(SOUND("r3"));
  assert.deepEqual(told.filter(Number.isFinite), []);
});

test("while the microphone is in use elsewhere nobody listens", () => {
  const { activity, told, take } = watch();
  activity.setUnheard(true);
  take(STARTED("r"), SOUND("r"), STOPPED);
  activity.setUnheard(false);
  activity.setUnheard(false);
  assert.deepEqual(told, ["unheard", "thinking", "speaking", "unheard", "listening"]);
});

test("it is quiet while nobody speaks and no answer is made", () => {
  const { activity, take } = watch();
  const quiet = [activity.isQuiet];
  for (const signal of [SPEAKS, SPOKE, STARTED("r"), SOUND("r"), STOPPED]) {
    take(signal);
    quiet.push(activity.isQuiet);
  }
  assert.deepEqual(quiet, [true, false, false, false, false, true]);
  take(SPEAKS);
  activity.reset();
  assert.deepEqual([activity.isQuiet, activity.activity], [true, "listening"]);
});

test("an answer that the user stops is over at once, and one that is only thought about goes on", () => {
  const { activity, told, take } = watch();
  take(SPEAKS, SPOKE, STARTED("r"));
  activity.interrupted();
  take(SOUND("r"));
  activity.interrupted();
  assert.deepEqual(told.filter((each) => typeof each === "string"), ["thinking", "speaking", "listening"]);
  assert.equal(activity.isQuiet, true);
});
