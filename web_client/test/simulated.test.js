import assert from "node:assert/strict";
import { test } from "node:test";

import { ResourceSwitch } from "../simulated.js";

/** A switch over a simulator that has these resources and faults, its button, and what the simulator was asked. */
function switchOver(resources, faults = {}) {
  const asked = [];
  globalThis.fetch = async (url, { method, body }) => {
    asked.push([method, url.replace("http://b/_simulator/resources", ""), ...(body ? [JSON.parse(body)] : [])]);
    const name = url.match(/resources\/([^/]+)\/faults/)?.[1];
    const known = resources !== null;
    return new Response(method === "GET" ? JSON.stringify(name ? (faults[name] ?? []) : resources) : null, { status: known ? (method === "GET" ? 200 : 204) : 404 });
  };
  const button = {
    hidden: true,
    addEventListener: (_, press) => (button.press = press),
    setAttribute: (name, value) => (button[name] = value),
  };
  return { resourceSwitch: new ResourceSwitch("http://b/", button), button, asked };
}

const settled = () => new Promise((resolve) => setTimeout(resolve, 5));
const TWO = { eastus2: "http://127.0.0.1:9100", swedencentral: "http://127.0.0.1:9101" };

for (const [name, resources] of [
  ["no simulator is there", null],
  ["one resource is simulated", { default: "http://127.0.0.1:9100" }],
]) {
  test(`the switch stays hidden where ${name}`, async () => {
    const { resourceSwitch, button } = switchOver(resources);
    await resourceSwitch.show();
    assert.equal(button.hidden, true);
  });
}

test("the switch breaks the resource that the talk uses, and repairs the one that is broken", async () => {
  const { resourceSwitch, button, asked } = switchOver(TWO);
  await resourceSwitch.show();
  assert.deepEqual([button.hidden, button.textContent], [false, "Break eastus2"]);
  resourceSwitch.uses("swedencentral");
  assert.equal(button.textContent, "Break swedencentral");
  asked.length = 0;
  button.press();
  await settled();
  const [put, hangUp] = asked;
  assert.deepEqual(put.slice(0, 2), ["PUT", "/swedencentral/faults"]);
  assert.deepEqual(put[2].map(({ fault }) => fault), ["cut", "refuse"]);
  assert.deepEqual(hangUp, ["DELETE", "/swedencentral/calls"]);
  resourceSwitch.uses("eastus2"); // the talk has moved
  assert.deepEqual([button.textContent, button["aria-pressed"]], ["Repair swedencentral", "true"]);
  button.press();
  await settled();
  assert.deepEqual(asked.at(-1), ["DELETE", "/swedencentral/faults"]);
  assert.equal(button.textContent, "Break eastus2");
});

test("what an earlier visit broke can be repaired", async () => {
  const { resourceSwitch, button } = switchOver(TWO, { swedencentral: [{ fault: "refuse" }] });
  await resourceSwitch.show();
  assert.equal(button.textContent, "Repair swedencentral");
});
