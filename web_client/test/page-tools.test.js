import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { PageTools } from "../page-tools.js";

mock.method(console, "error", () => {});

/** Tools with one handler, `show`. `settled` waits until all calls have their outputs. */
function made(handler) {
  const outputs = [];
  const states = [];
  let done = () => {};
  const settled = new Promise((resolve) => (done = resolve));
  const tools = new PageTools({
    send: ({ item }) => outputs.push([item.call_id, item.output]),
    onOutputs: done,
    onState: ({ name, state }) => states.push(`${name} ${state}`),
  });
  tools.set("show", handler);
  return { tools, outputs, states, settled };
}
const call = (callId, args = "{}", name = "show") => ({ kind: "tool_call", callId, name, args });
const FAILED = '{"error":"the page could not do this"}';

test("what a handler returns goes back to the model", async () => {
  const { tools, outputs, states, settled } = made(async ({ city }) => ({ city, degrees: 7 }));
  tools.handle(call("c1", '{"city":"Bergen"}'));
  await settled;
  assert.deepEqual(outputs, [["c1", '{"city":"Bergen","degrees":7}']]);
  assert.deepEqual(states, ["show running", "show done"]);
});

const cycle = {};
cycle.itself = cycle;
for (const [name, handler, output] of [
  ["a text", () => "Rain", "Rain"],
  ["nothing", () => undefined, "done"],
  ["null", () => null, "null"],
  ["a BigInt", () => ({ count: 12n }), '{"count":"12"}'],
  ["a cycle", () => cycle, FAILED],
  ["a throw", () => { throw new Error("secret"); }, FAILED],
  ["a rejection", async () => { throw new Error("secret"); }, FAILED],
  ["too much", () => "x".repeat(16_385), FAILED],
]) {
  test(`${name} becomes an output`, async () => {
    const { tools, outputs, settled } = made(handler);
    tools.handle(call("c1"));
    await settled;
    assert.deepEqual(outputs, [["c1", output]]);
  });
}

for (const args of ["{", "[]", "null", '"x"']) {
  test(`arguments ${args} fail without the handler`, async () => {
    const handler = mock.fn();
    const { tools, outputs, settled } = made(handler);
    tools.handle(call("c1", args));
    await settled;
    assert.deepEqual([outputs, handler.mock.callCount()], [[["c1", FAILED]], 0]);
  });
}

test("a handler that never ends becomes an error output", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const { tools, outputs, settled } = made(() => new Promise(() => {}));
  tools.handle(call("c1"));
  await Promise.resolve();
  context.mock.timers.tick(20_001);
  await settled;
  assert.deepEqual(outputs, [["c1", FAILED]]);
});

test("the page is silent about other tools, and about a call told twice", async () => {
  const { tools, outputs, settled } = made(() => "once");
  tools.handle(call("c0", "{}", "another"));
  tools.handle(call("c1"));
  tools.handle(call("c1"));
  await settled;
  assert.deepEqual(outputs, [["c1", "once"]]);
});

test("two calls are answered together", async () => {
  const waiting = [];
  const { tools, outputs, settled } = made(() => new Promise((resolve) => waiting.push(resolve)));
  tools.handle(call("c1"));
  tools.handle(call("c2"));
  await new Promise(setImmediate);
  waiting[1]("two");
  await new Promise(setImmediate);
  assert.deepEqual(outputs, [["c2", "two"]]);
  waiting[0]("one");
  await settled;
  assert.deepEqual(outputs, [["c2", "two"], ["c1", "one"]]);
});

test("after the connection's end nothing is sent, and the handler is told", async () => {
  let told;
  const { tools, outputs } = made((_, { signal }) => new Promise((resolve) => (signal.onabort = () => resolve((told = "gone")))));
  tools.handle(call("c1"));
  await new Promise(setImmediate);
  tools.end();
  await new Promise(setImmediate);
  assert.deepEqual([told, outputs], ["gone", []]);
});
