import assert from "node:assert/strict";
import { test } from "node:test";

import { TypedTexts } from "../typed-texts.js";

/** Typed texts whose events are kept, by their types. */
function made(whileAnswering = "interrupt") {
  const sent = [];
  const later = [];
  const texts = new TypedTexts({
    send: (event) => sent.push(event.type === "response.create" ? "ask" : event.item.id),
    interrupt: () => sent.push("stop"),
    whileAnswering,
    onSilent: () => sent.push("silent"),
    onLost: () => sent.push("lost"),
    later: (work, ms) => later.push([work, ms]),
  });
  /** Runs what is due within so long. */
  const wait = (withinMs = 10_000) => {
    const due = later.filter(([, ms]) => ms <= withinMs);
    for (const each of due) later.splice(later.indexOf(each), 1);
    for (const [work] of due) work();
  };
  return { texts, sent, wait, waitLong: () => wait(60_000) };
}
const STARTED = { kind: "response_started", responseId: "r" };
const DONE = { kind: "response_done", responseId: "r", status: "completed" };
const WORDS = { kind: "transcript_delta", speaker: "assistant", itemId: "a", responseId: "r", text: "Hello" };
const BUSY = { kind: "error", code: "conversation_already_has_active_response", message: "", retryable: true };

test("the broker asks about a text where it leads, and the page where it does not", () => {
  let isLed = true;
  const sent = [];
  const later = [];
  const send = (event) => sent.push(event.type === "response.create" ? "ask" : event.item.id);
  const later_ = (work, ms) => ms < 20_000 && later.push(work);
  const texts = new TypedTexts({ send, interrupt: () => {}, whileAnswering: "interrupt", isLed: () => isLed, later: later_ });
  texts.say("one", "Hello");
  assert.deepEqual(sent, ["one"]);
  texts.handle(STARTED);
  texts.handle(WORDS);
  texts.handle(DONE);
  later.splice(0).forEach((work) => work());
  assert.deepEqual(sent, ["one"]);
  texts.say("two", "And?");
  later.splice(0).forEach((work) => work()); // nobody has answered
  assert.deepEqual(sent, ["one", "two", "ask"]);
  isLed = false;
  texts.alone();
  assert.deepEqual(sent, ["one", "two", "ask", "ask"]);
});

test("a text is asked about at once where no answer runs", () => {
  const { texts, sent } = made();
  texts.say("one", "Hello");
  assert.deepEqual(sent, ["one", "ask"]);
});

test("a text stops the answer that runs, and is asked about at its end", () => {
  const { texts, sent } = made();
  texts.handle(STARTED);
  texts.say("one", "Wait");
  assert.deepEqual(sent, ["one", "stop"]);
  texts.handle(DONE);
  assert.deepEqual(sent, ["one", "stop", "ask"]);
});

test("a queued text lets the answer end", () => {
  const { texts, sent } = made("queue");
  texts.handle(STARTED);
  texts.say("one", "And then?");
  texts.say("two", "And after that?");
  texts.handle(WORDS);
  texts.handle(DONE);
  assert.deepEqual(sent, ["one", "two", "ask"]);
});

test("two texts before the first answer begins make one more question", () => {
  const { texts, sent } = made("queue");
  texts.say("one", "Hello");
  texts.say("two", "Are you there?");
  texts.handle(STARTED);
  texts.handle(DONE);
  assert.deepEqual(sent, ["one", "ask", "two", "ask"]);
});

test("a refusal because an answer runs is no fault, and is asked again", () => {
  const { texts, sent } = made();
  texts.say("one", "Hello"); // it crossed the start of an answer to what was spoken
  assert.equal(texts.handle(BUSY), true);
  texts.handle(DONE);
  assert.deepEqual(sent, ["one", "ask", "ask"]);
});

test("another error is told", () => {
  const { texts } = made();
  assert.equal(texts.handle({ ...BUSY, code: "rate_limit_exceeded" }), false);
});

test("what has no answer is sent again after a reconnect, with its id", () => {
  const { texts, sent } = made();
  texts.say("one", "Hello");
  texts.reconnected();
  assert.deepEqual(sent, ["one", "ask", "one", "ask"]);
});

test("what was answered is not sent again", () => {
  const { texts, sent } = made();
  texts.say("one", "Hello");
  texts.handle(STARTED);
  texts.handle(WORDS);
  texts.reconnected();
  assert.deepEqual(sent, ["one", "ask"]);
  assert.deepEqual(texts.end(), []);
});

test("words of the answer before do not count as the waiting text's answer", () => {
  const { texts } = made("queue");
  texts.handle(STARTED);
  texts.say("one", "And then?");
  texts.handle(WORDS);
  assert.deepEqual(texts.end(), ["And then?"]);
  assert.deepEqual(texts.end(), []);
});

test("where no end is told, a stopped answer has a moment to end", () => {
  const { texts, sent, wait } = made();
  texts.handle(WORDS);
  texts.say("one", "Wait");
  assert.deepEqual(sent, ["one", "stop"]);
  wait();
  assert.deepEqual(sent, ["one", "stop", "ask"]);
});

test("where no end is told, a queued text waits for the transcript", () => {
  const { texts, sent, wait } = made("queue");
  texts.handle(WORDS);
  texts.say("one", "And then?");
  wait();
  assert.deepEqual(sent, ["one"]);
  texts.handle({ ...WORDS, kind: "transcript_done" });
  wait();
  assert.deepEqual(sent, ["one", "ask"]);
});

test("a text that meets a silent connection goes to another one, and is told lost where that is silent too", () => {
  const { texts, sent, waitLong } = made();
  texts.say("one", "Hello");
  waitLong();
  assert.deepEqual(sent, ["one", "ask", "silent"]);
  texts.reconnected();
  waitLong();
  assert.deepEqual(sent, ["one", "ask", "silent", "one", "ask", "lost"]);
  waitLong();
  assert.deepEqual([sent.length, texts.end()], [6, []]);
});

test("a connection that tells of anything is not silent, nor is one whose answer is heard", () => {
  const { texts, sent, waitLong } = made("queue");
  texts.handle(STARTED);
  texts.handle({ kind: "playback_started" });
  texts.say("one", "And then?");
  for (let round = 0; round < 3; round += 1) waitLong(); // a long answer: nothing but its sound
  assert.deepEqual(sent, ["one"]);
  texts.handle({ kind: "playback_stopped" });
  waitLong();
  assert.deepEqual(sent, ["one"]);
  waitLong();
  assert.deepEqual(sent, ["one", "silent"]);
});

test("an answer ends the look for silence", () => {
  const { texts, sent, waitLong } = made();
  texts.say("one", "Hello");
  texts.handle(STARTED);
  texts.handle(WORDS);
  for (let round = 0; round < 3; round += 1) waitLong();
  assert.deepEqual(sent, ["one", "ask"]);
});
