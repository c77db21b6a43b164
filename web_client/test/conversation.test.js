import assert from "node:assert/strict";
import { test } from "node:test";

import { Conversation } from "../conversation.js";

const item = (itemId, role) => ({ kind: "item", itemId, previousItemId: null, role });
const words = (speaker, itemId, text) => ({ kind: "transcript_delta", speaker, itemId, responseId: null, text });
const said = (speaker, itemId, text) => ({ kind: "transcript_done", speaker, itemId, responseId: null, text });

function take(conversation, signals) {
  const updates = signals.map((signal) => conversation.apply(signal));
  return { lines: updates.flatMap(({ lines }) => lines), turns: updates.flatMap(({ turns }) => turns) };
}

test("a line grows with the words, and ends with the whole", () => {
  const { lines } = take(new Conversation(), [words("assistant", "a", "Hel"), words("assistant", "a", "lo"), said("assistant", "a", "Hello.")]);
  assert.deepEqual(lines.map(({ text, final }) => [text, final]), [["Hel", false], ["Hello", false], ["Hello.", true]]);
});

test("the user's line keeps its place while its words are still to come", () => {
  const { lines } = take(new Conversation(), [item("u", "user"), item("a", "assistant"), said("assistant", "a", "Yes?"), said("user", "u", "Hey")]);
  assert.deepEqual(lines.map(({ turnId, text }) => [turnId, text]), [["u", ""], ["a", "Yes?"], ["u", "Hey"]]);
});

test("a turn's sequence is its item's place, in whatever order the transcripts come", () => {
  const { turns } = take(new Conversation(), [item("u", "user"), item("a", "assistant"), said("assistant", "a", "Yes?"), said("user", "u", "Hey")]);
  assert.deepEqual(turns.map(({ turnId, sequence }) => [turnId, sequence]), [["a", 1], ["u", 0]]);
});

test("a turn is told once, however often its end is said", () => {
  const { turns } = take(new Conversation(), [said("user", "u", "Hey"), said("user", "u", "Hey!"), item("u", "user")]);
  assert.deepEqual(turns.map(({ content }) => content), ["Hey"]);
});

test("what the agent was saying when Azure broke off ends as interrupted, and takes no more words", () => {
  const { lines, turns } = take(new Conversation(), [
    said("user", "u", "Hey"),
    words("assistant", "a", "Once upon"),
    item("b", "assistant"),
    { kind: "resuming", reason: "lost", retryAfterMs: null },
    words("assistant", "a", " a time"),
    said("assistant", "c", "a time."),
  ]);
  const shown = lines.map(({ turnId, text, final, interrupted }) => [turnId, text, final, interrupted]);
  assert.deepEqual(shown, [["u", "Hey", true, false], ["a", "Once upon", false, false], ["a", "Once upon", true, true], ["c", "a time.", true, false]]);
  assert.deepEqual(turns.map(({ turnId, interrupted }) => [turnId, interrupted]), [["u", false], ["a", true], ["c", false]]);
});

test("speech that could not be written down shows an empty line, and keeps its place in the memory", () => {
  const { lines, turns } = take(new Conversation(), [item("u", "user"), { kind: "transcription_failed", itemId: "u" }]);
  assert.deepEqual([lines.at(-1).final, lines.at(-1).text], [true, ""]);
  assert.deepEqual(turns.map(({ sequence, content }) => [sequence, content]), [[0, "(speech that could not be transcribed)"]]);
});

test("an assistant's turn waits for the end of its sound, the user's does not", () => {
  const conversation = new Conversation();
  const during = take(conversation, [{ kind: "playback_started" }, said("assistant", "a", "A long story."), said("user", "u", "Hm")]);
  assert.deepEqual(during.turns.map(({ turnId }) => turnId), ["u"]);
  const after = conversation.apply({ kind: "playback_stopped" });
  assert.deepEqual(after.turns.map(({ turnId, interrupted }) => [turnId, interrupted]), [["a", false]]);
});

/** A conversation whose clock stands where `at` puts it. */
function timed() {
  let nowMs = 0;
  return { conversation: new Conversation(undefined, () => nowMs), at: (ms) => (nowMs = ms) };
}
const STORY = "Once upon a time there was a fox who had a house of his own.";
const cut = (itemId, playedMs, totalMs) => ({ itemId, contentIndex: 0, playedMs, totalMs });

test("an answer cut short says so, on screen and in its turn, and keeps the words that were heard", () => {
  const conversation = new Conversation();
  take(conversation, [{ kind: "playback_started" }, said("assistant", "a", STORY)]);
  const { lines, turns } = conversation.interrupted([cut("a", 1_400, 3_700)]);
  assert.deepEqual(lines.map(({ turnId, text, interrupted }) => [turnId, text, interrupted]), [["a", "Once upon a time there", true]]);
  assert.deepEqual(turns.map(({ turnId, content, interrupted }) => [turnId, content, interrupted]), [["a", "Once upon a time there", true]]);
});

test("words that come after the cut were not heard", () => {
  const conversation = new Conversation();
  take(conversation, [{ kind: "playback_started" }, words("assistant", "a", "Once upon a time there was")]);
  conversation.interrupted([cut("a", 1_000, 2_000)]);
  const { lines, turns } = take(conversation, [words("assistant", "a", " a fox"), said("assistant", "a", STORY)]);
  assert.deepEqual(lines.map(({ text, final }) => [text, final]), [["Once upon a", false], ["Once upon a", true]]);
  assert.deepEqual(turns.map(({ content }) => content), ["Once upon a"]);
});

test("words that come only after the cut are shared out by their sound", () => {
  const conversation = new Conversation();
  take(conversation, [item("a", "assistant"), { kind: "playback_started" }]);
  conversation.interrupted([cut("a", 1_000, 2_000)]);
  assert.equal(take(conversation, [said("assistant", "a", STORY)]).lines.at(-1).text, "Once upon a time there was a");
});

test("an answer of which nothing was heard leaves no words, and no turn", () => {
  const conversation = new Conversation();
  take(conversation, [{ kind: "playback_started" }, said("assistant", "a", STORY)]);
  const { lines, turns } = conversation.interrupted([cut("a", 0, 3_700)]);
  assert.deepEqual([lines.map(({ text }) => text), turns], [[""], []]);
});

test("where only the time is known, the agent's own pace says how far it came", () => {
  const { conversation, at } = timed();
  take(conversation, [{ kind: "playback_started" }, said("assistant", "a", STORY)]);
  at(1_000); // 15 characters, as people speak
  assert.equal(conversation.interrupted().lines[0].text, "Once upon a");
  take(conversation, [{ kind: "playback_stopped" }, { kind: "playback_started" }, said("assistant", "b", STORY)]);
  at(7_000); // the whole of it in six seconds: ten a second
  take(conversation, [{ kind: "playback_stopped" }, { kind: "playback_started" }, said("assistant", "c", STORY), said("assistant", "d", STORY)]);
  at(14_500);
  const { lines } = conversation.interrupted();
  assert.deepEqual(lines.map(({ turnId, text }) => [turnId, text]), [["c", STORY], ["d", "Once upon a"]]);
});

test("words in scripts without blanks are cut between characters, and no character in two", () => {
  const conversation = new Conversation();
  take(conversation, [{ kind: "playback_started" }, said("assistant", "a", "端到端测试已经通过"), said("assistant", "b", "😀😀")]);
  const { lines } = conversation.interrupted([cut("a", 1_000, 3_000), cut("b", 1_500, 2_000)]);
  assert.deepEqual(lines.map(({ text }) => text), ["端到端", "😀"]);
});

test("an answer cut before its words were complete is told as interrupted when they are", () => {
  const { conversation, at } = timed();
  take(conversation, [{ kind: "playback_started" }, words("assistant", "a", "A long")]);
  at(500);
  conversation.interrupted();
  const { turns } = conversation.apply(said("assistant", "a", "A long story."));
  assert.deepEqual(turns.map(({ interrupted }) => interrupted), [true]);
});

test("speech into silence interrupts nothing", () => {
  const conversation = new Conversation();
  take(conversation, [said("assistant", "a", "Done.")]);
  assert.deepEqual(conversation.interrupted(), { lines: [], turns: [] });
});

test("only the items that were cut are marked, where they are known", () => {
  const conversation = new Conversation();
  take(conversation, [words("assistant", "a", "One"), words("assistant", "b", "Two")]);
  assert.deepEqual(conversation.interrupted([cut("b", 10, 10)]).lines.map(({ turnId, text }) => [turnId, text]), [["b", "Two"]]);
});

test("the next sound ends the one before, though nobody said so", () => {
  const conversation = new Conversation();
  take(conversation, [{ kind: "playback_started" }, said("assistant", "a", "First.")]);
  assert.deepEqual(conversation.apply({ kind: "playback_started" }).turns.map(({ turnId }) => turnId), ["a"]);
});

test("typed words are a line and a turn at once", () => {
  const { lines, turns } = new Conversation().typed("t", "Hello");
  assert.deepEqual([lines[0].text, lines[0].final, turns[0].role, turns[0].content], ["Hello", true, "user", "Hello"]);
});

test("at the end, turns that waited are told, and words without an end are partial", () => {
  const conversation = new Conversation();
  take(conversation, [{ kind: "playback_started" }, said("assistant", "a", "Done."), words("assistant", "b", "And fur")]);
  const { turns, partial } = conversation.close();
  assert.deepEqual(turns.map(({ turnId }) => turnId), ["a"]);
  assert.deepEqual(partial.map(({ turnId, content, interrupted }) => [turnId, content, interrupted]), [["b", "And fur", true]]);
});

test("a talk of hours keeps a bounded number of items", () => {
  const conversation = new Conversation();
  for (let n = 0; n < 5_000; n += 1) conversation.apply(said("user", `u${n}`, "Hey"));
  const again = conversation.apply(said("user", "u4999", "Hey"));
  assert.deepEqual(again.turns, []);
});
