import assert from "node:assert/strict";
import { test } from "node:test";

import { JitterBuffer } from "../audio/worklets.js";

const ms = (count, value = 1_000) => new Int16Array(count * 24).fill(value);
const pull = (buffer, count) => buffer.pull(new Float32Array(count * 24)) / 24;

test("sound starts once the preroll is in hand", () => {
  const buffer = new JitterBuffer({ prerollMs: 60 });
  buffer.push("a", 0, ms(40));
  assert.equal(pull(buffer, 10), 0);
  buffer.push("a", 0, ms(20));
  assert.equal(pull(buffer, 10), 10);
});

test("an item shorter than the preroll is played as soon as it is complete", () => {
  const buffer = new JitterBuffer({ prerollMs: 60 });
  buffer.push("a", 0, ms(20));
  buffer.finish("a");
  assert.equal(pull(buffer, 50), 20);
  assert.equal(buffer.busy, false);
});

test("samples come out once, in order, across items", () => {
  const buffer = new JitterBuffer({ prerollMs: 0 });
  buffer.push("a", 0, Int16Array.of(1, 2, 3));
  buffer.push("b", 0, Int16Array.of(4, 5));
  buffer.finish("b");
  const output = new Float32Array(7);
  assert.equal(buffer.pull(output), 5);
  assert.deepEqual([...output].map((x) => Math.round(x * 32_768)), [1, 2, 3, 4, 5, 0, 0]);
});

test("a stall in the middle of an item waits for twice the preroll, up to a limit", () => {
  const buffer = new JitterBuffer({ prerollMs: 60, maxPrerollMs: 200 });
  for (const [prerollMs, underruns] of [[60, 1], [120, 2], [200, 3], [200, 4]]) {
    buffer.push("a", 0, ms(prerollMs - 1));
    assert.equal(pull(buffer, 10), 0, `starts before ${prerollMs} ms`);
    buffer.push("a", 0, ms(1));
    assert.equal(pull(buffer, prerollMs + 10), prerollMs);
    assert.equal(buffer.underruns, underruns);
  }
});

test("the end of a finished item is no stall", () => {
  const buffer = new JitterBuffer();
  buffer.push("a", 0, ms(100));
  buffer.finish("a");
  pull(buffer, 200);
  assert.equal(buffer.underruns, 0);
});

test("clearing says how far each item was played, never beyond what was pulled", () => {
  const buffer = new JitterBuffer({ prerollMs: 0 });
  buffer.push("a", 0, ms(100));
  buffer.push("b", 2, ms(100));
  pull(buffer, 35);
  assert.deepEqual(buffer.clear(), [
    { itemId: "a", contentIndex: 0, playedMs: 35, totalMs: 100 },
    { itemId: "b", contentIndex: 2, playedMs: 0, totalMs: 100 },
  ]);
  assert.equal(buffer.bufferedMs, 0);
  assert.equal(pull(buffer, 10), 0);
});

test("what has left the buffer but not reached the ear does not count as played", () => {
  const buffer = new JitterBuffer({ prerollMs: 0 });
  buffer.push("a", 0, ms(100));
  pull(buffer, 35);
  assert.equal(buffer.clear(10 * 24)[0].playedMs, 25);
  buffer.push("a", 0, ms(100));
  pull(buffer, 5);
  assert.equal(buffer.clear(10 * 24)[0].playedMs, 0);
});

test("an item heard to its end is not cut", () => {
  const buffer = new JitterBuffer({ prerollMs: 0 });
  buffer.push("a", 0, ms(30));
  pull(buffer, 30);
  buffer.finish("a");
  assert.deepEqual(buffer.clear(), []);
});

test("an item that still grows is cut where it was, though all of it was pulled", () => {
  const buffer = new JitterBuffer({ prerollMs: 0 });
  buffer.push("a", 0, ms(30));
  pull(buffer, 50);
  assert.deepEqual(buffer.clear(), [{ itemId: "a", contentIndex: 0, playedMs: 30, totalMs: 30 }]);
});

test("what exceeds the capacity is dropped, and counted", () => {
  const buffer = new JitterBuffer({ capacityMs: 100 });
  buffer.push("a", 0, ms(80));
  buffer.push("a", 0, ms(50));
  assert.equal(buffer.bufferedMs, 100);
  assert.equal(buffer.droppedMs, 30);
});
