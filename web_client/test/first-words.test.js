import assert from "node:assert/strict";
import { test } from "node:test";

import { FirstWords } from "../audio/first-words.js";

const chunk = (number) => Int16Array.of(number);
const numbers = (chunks) => chunks.map(([number]) => number);

test("what is said while nobody takes it is handed over once, in order", () => {
  const words = new FirstWords();
  words.add(chunk(0)); // a connection takes it
  words.begin();
  for (const number of [1, 2, 3]) words.add(chunk(number));
  assert.deepEqual(numbers(words.take()), [1, 2, 3]);
  words.add(chunk(4));
  assert.deepEqual([words.take(), words.keeps], [[], false]);
});

test("of more than three seconds the last three are kept", () => {
  const words = new FirstWords();
  words.begin();
  for (let number = 0; number < 200; number += 1) words.add(chunk(number));
  const kept = numbers(words.take());
  assert.deepEqual([kept.length, kept[0], kept.at(-1)], [150, 50, 199]);
});

test("what was said before the microphone was muted is forgotten", () => {
  const words = new FirstWords();
  words.begin();
  words.add(chunk(1));
  words.drop();
  words.add(chunk(2));
  assert.deepEqual(numbers(words.take()), [2]);
});
