import assert from "node:assert/strict";
import { test } from "node:test";

import { canResample } from "../audio/rates.js";
import { Resampler } from "../audio/worklets.js";

const DEVICE_RATES = [48_000, 44_100, 16_000];
const WIRE_RATE = 24_000;

/** A sine of `frequency` Hz, taken through the resamplers in blocks of 128, as a worklet does. */
function through(resamplers, rate, frequency, seconds = 0.25) {
  const input = Float32Array.from({ length: Math.round(rate * seconds) }, (_, n) =>
    Math.sin((2 * Math.PI * frequency * n) / rate),
  );
  return resamplers.reduce(inBlocks, input);
}

function inBlocks(input, resampler) {
  const parts = [];
  for (let start = 0; start < input.length; start += 128) {
    parts.push(resampler.process(input.subarray(start, start + 128)));
  }
  const output = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    output.set(part, at);
    at += part.length;
  }
  return output;
}

/** The strength of one frequency (a least-squares sine), and of all that is left when it is taken away, in dB. */
function analyse(signal, rate, frequency) {
  const steady = signal.subarray(Math.round(signal.length * 0.25), Math.round(signal.length * 0.9));
  let ss = 0;
  let cc = 0;
  let sc = 0;
  let sx = 0;
  let cx = 0;
  steady.forEach((x, n) => {
    const s = Math.sin((2 * Math.PI * frequency * n) / rate);
    const c = Math.cos((2 * Math.PI * frequency * n) / rate);
    ss += s * s;
    cc += c * c;
    sc += s * c;
    sx += s * x;
    cx += c * x;
  });
  const determinant = ss * cc - sc * sc;
  const a = (sx * cc - cx * sc) / determinant;
  const b = (cx * ss - sx * sc) / determinant;
  let rest = 0;
  steady.forEach((x, n) => {
    const angle = (2 * Math.PI * frequency * n) / rate;
    rest += (x - a * Math.sin(angle) - b * Math.cos(angle)) ** 2;
  });
  return { tone: 20 * Math.log10(Math.hypot(a, b)), rest: 10 * Math.log10((2 * rest) / steady.length + 1e-20) };
}

function loudness(signal) {
  const steady = signal.subarray(Math.round(signal.length * 0.25), Math.round(signal.length * 0.9));
  return 10 * Math.log10((2 * steady.reduce((sum, x) => sum + x * x, 0)) / steady.length + 1e-20);
}

function* sweep(from, to, step) {
  for (let frequency = from; frequency <= to; frequency += step) yield frequency;
}

for (const rate of DEVICE_RATES) {
  const flatTo = Math.min(10_000, ((rate / 2) * 10) / 12);

  test(`${rate} to 24000 to ${rate} Hz is flat within 0.5 dB to ${Math.round(flatTo)} Hz, and adds nothing above -60 dB`, () => {
    for (const frequency of sweep(100, flatTo, 300)) {
      const output = through([new Resampler(rate, WIRE_RATE), new Resampler(WIRE_RATE, rate)], rate, frequency);
      const { tone, rest } = analyse(output, rate, frequency);
      assert.ok(Math.abs(tone) < 0.5, `${frequency} Hz comes out at ${tone.toFixed(2)} dB`);
      assert.ok(rest < -60, `${frequency} Hz leaves ${rest.toFixed(1)} dB elsewhere`);
    }
  });

  if (rate > WIRE_RATE) {
    test(`at ${rate} Hz, what lies above 12 kHz is gone after the way down to 24 kHz`, () => {
      for (const frequency of sweep(12_050, rate / 2 - 50, 250)) {
        const output = through([new Resampler(rate, WIRE_RATE)], rate, frequency);
        assert.ok(loudness(output) < -60, `${frequency} Hz folds back at ${loudness(output).toFixed(1)} dB`);
      }
    });
  }
}

test("a stream keeps its rate exactly, however it is cut", () => {
  for (const [from, to] of [[48_000, 24_000], [44_100, 24_000], [24_000, 44_100], [16_000, 24_000], [24_000, 16_000]]) {
    const resampler = new Resampler(from, to);
    let given = 0;
    let got = 0;
    for (let turn = 0; turn < 400; turn += 1) {
      const size = (turn * 37) % 311;
      given += size;
      got += resampler.process(new Float32Array(size)).length;
    }
    assert.ok(Math.abs(got - (given * to) / from) <= 1 + to / from, `${from} to ${to}: ${given} gave ${got}`);
  }
});

test("the way a stream is cut into blocks changes no sample", () => {
  const input = Float32Array.from({ length: 5_000 }, (_, n) => Math.sin(n / 7) * Math.sin(n / 301));
  const whole = new Resampler(44_100, WIRE_RATE).process(input);
  const blocks = inBlocks(input, new Resampler(44_100, WIRE_RATE));
  assert.deepEqual(blocks, whole);
});

test("inputNeededFor is enough, and one sample fewer is not", () => {
  for (const [from, to] of [[24_000, 48_000], [24_000, 44_100], [24_000, 16_000], [48_000, 24_000]]) {
    const resampler = new Resampler(from, to);
    for (let turn = 0; turn < 200; turn += 1) {
      const needed = resampler.inputNeededFor(128);
      const short = needed > 0 ? resampler.process(new Float32Array(needed - 1)).length : 0;
      const rest = resampler.process(new Float32Array(Math.min(1, needed))).length;
      assert.ok(short < 128);
      assert.ok(short + rest >= 128);
    }
  }
});

test("equal rates pass samples through untouched and without delay", () => {
  const input = Float32Array.of(0.1, -0.2, 0.3);
  assert.deepEqual(new Resampler(24_000, 24_000).process(input), input);
});

test("rates with an absurd ratio are refused", () => {
  assert.equal(canResample(47_999, 24_000), false);
  assert.equal(canResample(44_100.5, 24_000), false);
});
