import assert from "node:assert/strict";
import { test } from "node:test";

import { BrokerError } from "../broker.js";
import { Replacement } from "../replacement.js";

const PLAN = { agentId: "elena", outlook: "good" };

/** A replacement whose plans come when the test says so. */
function made({ quiet = true } = {}) {
  const source = { wantedAgentId: undefined };
  const connection = new AbortController();
  const told = [];
  const asked = [];
  const state = { quiet };
  const replacement = new Replacement({
    nextPlan: () => new Promise((resolve, reject) => asked.push({ resolve, reject, agentId: source.wantedAgentId })),
    source,
    connection: () => connection.signal,
    isQuiet: () => state.quiet,
    onPlan: (plan, reason) => told.push(`${plan.agentId} ${reason}`),
    onSwitchFailed: (message) => told.push(message),
  });
  const answer = async (plan) => {
    const { resolve, reject } = asked.at(-1);
    if (plan instanceof Error) reject(plan);
    else resolve(plan);
    await new Promise((done) => setImmediate(done));
  };
  return { replacement, source, connection, told, asked, state, answer };
}

test("a move waits for a pause", async () => {
  const { replacement, told, asked, state, answer } = made({ quiet: false });
  replacement.due();
  replacement.pause();
  assert.equal(asked.length, 0);
  state.quiet = true;
  replacement.pause();
  await answer(PLAN);
  assert.deepEqual(told, ["elena session_limit"]);
  replacement.end();
});

test("a plan that is no use, or comes after the connection is gone, replaces nothing", async () => {
  for (const plan of [{ ...PLAN, outlook: "poor" }, new BrokerError("timeout", "late")]) {
    const { replacement, told, answer } = made();
    replacement.due();
    await answer(plan);
    replacement.end();
    assert.deepEqual(told, []);
  }
  const { replacement, connection, told, answer } = made();
  replacement.due();
  connection.abort();
  await answer(PLAN);
  assert.deepEqual(told, []);
});

test("no move while the proxy resumes the talk; one that is due comes after it", async () => {
  const { replacement, told, asked, answer } = made();
  replacement.isHeld = true;
  replacement.due();
  assert.equal(asked.length, 0);
  replacement.isHeld = false;
  replacement.pause();
  await answer(PLAN);
  assert.deepEqual(told, ["elena session_limit"]);
  replacement.end();
});

test("the agent that was wanted last is taken, though a plan for another is on its way", async () => {
  const { replacement, source, told, asked, answer } = made();
  source.wantedAgentId = "marcus";
  void replacement.switchAgent();
  source.wantedAgentId = "nova";
  void replacement.switchAgent();
  await answer({ ...PLAN, agentId: "marcus" });
  assert.deepEqual(asked.map(({ agentId }) => agentId), ["marcus", "nova"]);
  source.wantedAgentId = undefined; // as the source does when the plan is for that agent
  await answer({ ...PLAN, agentId: "nova" });
  assert.deepEqual(told, ["nova agent_switched"]);
});

test("an agent that is wanted while a move is on its way is not forgotten", async () => {
  const { replacement, source, told, asked, answer } = made();
  replacement.due();
  source.wantedAgentId = "marcus";
  void replacement.switchAgent();
  await answer(PLAN);
  assert.equal(asked.length, 2);
  source.wantedAgentId = undefined;
  await answer({ ...PLAN, agentId: "marcus" });
  assert.deepEqual(told, ["marcus agent_switched"]);
  replacement.end();
});

test("an agent that can't be had is told, and is wanted no more", async () => {
  const { replacement, source, told, answer } = made();
  source.wantedAgentId = "marcus";
  void replacement.switchAgent();
  await answer(new BrokerError("forbidden", "You may not talk with this agent."));
  assert.deepEqual([told, source.wantedAgentId], [["You may not talk with this agent."], undefined]);
});
