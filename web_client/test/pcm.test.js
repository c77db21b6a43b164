import assert from "node:assert/strict";
import { test } from "node:test";

import { appendFrame, decodePcm16, encodePcm16, pcm16ToFloat } from "../audio/pcm.js";
import { Chunker, floatToPcm16 } from "../audio/worklets.js";

test("floats become PCM16: rounded, clipped, and silence where they are no number", () => {
  const pcm = floatToPcm16(Float32Array.of(0, 1, -1, 2, -2, 0.5, NaN));
  assert.deepEqual([...pcm], [0, 32_767, -32_767, 32_767, -32_768, 16_384, 0]);
});

test("PCM16 survives the way through base64, at any length", () => {
  for (const length of [0, 1, 2, 3, 480, 12_288, 12_289, 50_001]) {
    const pcm = Int16Array.from({ length }, (_, n) => ((n * 7919) % 65_536) - 32_768);
    assert.equal(encodePcm16(pcm), Buffer.from(pcm.buffer).toString("base64"));
    assert.deepEqual(decodePcm16(encodePcm16(pcm)), pcm);
  }
});

test("PCM16 survives the way through floats within one step", () => {
  const pcm = Int16Array.from({ length: 65_536 }, (_, n) => n - 32_768);
  const back = floatToPcm16(pcm16ToFloat(pcm));
  pcm.forEach((sample, index) => assert.ok(Math.abs(sample - back[index]) <= 1));
});

test("an odd byte at the end of a delta is dropped", () => {
  assert.deepEqual([...decodePcm16(Buffer.from([1, 0, 2]).toString("base64"))], [1]);
});

test("the append frame is, byte for byte, the one that the broker passes on unparsed", () => {
  assert.equal(appendFrame(Int16Array.of(1, -1)), '{"type":"input_audio_buffer.append","audio":"AQD//w=="}');
});

test("20 ms of audio make a frame of the expected size", () => {
  assert.equal(appendFrame(new Int16Array(480)).length, 1_280 + '{"type":"input_audio_buffer.append","audio":""}'.length);
});

test("the chunker gives whole chunks, in order, and loses nothing", () => {
  const chunker = new Chunker(480);
  const chunks = [];
  for (let n = 0; n < 5_000; n += 127) {
    chunks.push(...chunker.push(Float32Array.from({ length: 127 }, (_, index) => n + index)));
  }
  assert.ok(chunks.every((chunk) => chunk.length === 480));
  const flat = chunks.flatMap((chunk) => [...chunk]);
  assert.deepEqual(flat, Array.from({ length: flat.length }, (_, index) => index));
  assert.ok(flat.length > 5_000 - 480);
});

test("one long block gives several chunks", () => {
  assert.equal(new Chunker(480).push(new Float32Array(1_500)).length, 3);
});
