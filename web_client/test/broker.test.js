import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { Broker, BrokerError, retryAfterMs } from "../broker.js";

mock.method(console, "error", () => {}); // what a page's own code throws is shown to its developer

/** A broker behind a fetch that answers once with `answer`, and shows what it was asked. */
function asking(answer) {
  const asked = [];
  const fetch = async (url, init) => {
    asked.push({ url, init, body: init.body && JSON.parse(init.body) });
    if (answer instanceof Error) throw answer;
    return answer;
  };
  return { broker: new Broker("https://b.example/", { fetch }), asked };
}

const json = (body, init) => new Response(JSON.stringify(body), init);
const REPORT = {
  turn: { turnId: "i1", role: "user", content: "Hey", sequence: 3, interrupted: true, createdAt: "2026-01-01T00:00:00Z" },
  agentId: "elena",
  sessionId: "s",
  sessionToken: "t",
};

test("a plan is asked for with the session to resume and its token", async () => {
  const { broker, asked } = asking(json({ session_id: "s" }));
  await broker.requestPlan({ agentId: "elena", sessionId: "s", sessionToken: "t", userId: "u" });
  assert.equal(asked[0].url, "https://b.example/api/v1/voice/realtime/token");
  assert.equal(asked[0].init.headers["X-Session-Token"], "t");
  assert.deepEqual(asked[0].body, { agent_id: "elena", session_id: "s", user_id: "u", modalities: ["audio", "text"] });
});

test("a turn is reported with all that the contract has", async () => {
  const { broker, asked } = asking(json({ status: "success" }));
  await broker.reportTurn(REPORT, { keepalive: true });
  assert.equal(asked[0].init.headers.Authorization, "Bearer t");
  assert.equal(asked[0].init.headers["X-Session-Token"], "t");
  assert.equal(asked[0].init.keepalive, true);
  assert.deepEqual(asked[0].body, {
    session_id: "s", agent_id: "elena", role: "user", content: "Hey", turn_id: "i1", sequence: 3,
    created_at: "2026-01-01T00:00:00Z", interrupted: true,
  });
});

test("what was being said goes to the memory under the same key as a turn", async () => {
  const { broker, asked } = asking(json({ success: true }, { status: 202 }));
  await broker.enrich([REPORT]);
  assert.equal(asked[0].url, "https://b.example/api/v1/memory/enrich");
  assert.equal(asked[0].init.headers["X-Session-Token"], "t");
  assert.deepEqual(asked[0].body.transcripts, [
    { text: "Hey", session_id: "s", speaker: "user", agent_id: "elena", channel: "voice", turn_id: "i1" },
  ]);
});

test("a problem document's code and detail reach the page", async () => {
  const problem = json({ code: "unknown_agent", detail: "Ask for elena.", correlation_id: "c" }, { status: 404 });
  await assert.rejects(asking(problem).broker.requestPlan({}), (error) => {
    assert.ok(error instanceof BrokerError);
    assert.deepEqual([error.code, error.message, error.status, error.retryable, error.correlationId], ["unknown_agent", "Ask for elena.", 404, false, "c"]);
    return true;
  });
});

for (const [status, retryable] of [[400, false], [403, false], [404, false], [408, true], [413, false], [422, false], [429, true], [500, true], [502, true], [503, true]]) {
  test(`${status} ${retryable ? "is asked again" : "is final"}, whatever its body`, async () => {
    await assert.rejects(asking(new Response("<html>", { status })).broker.requestPlan({}), { retryable, code: `http_${status}` });
  });
}

/** The error of a request for a plan whose answer is `answer`, and how often the page's `getToken` was called. */
async function signedIn(answer, getToken) {
  const wanted = [];
  const sent = [];
  const fetch = async (_url, init) => {
    sent.push(init.headers.Authorization);
    return typeof answer === "function" ? answer(sent.length) : answer;
  };
  const broker = new Broker("https://b.example", {
    fetch,
    getToken: (options) => {
      wanted.push(options.refresh);
      return getToken(wanted.length);
    },
  });
  const plan = await broker.requestPlan({}).catch((error) => error);
  return { plan, wanted, sent };
}

test("the user's token goes with the plan's request, once, and without a second Bearer", async () => {
  const { plan, wanted, sent } = await signedIn(json({ session_id: "s" }), () => "Bearer one ");
  assert.deepEqual([plan.session_id, wanted, sent], ["s", [false], ["Bearer one"]]);
});

test("a token that was asked for in the click goes with the next plan alone", async () => {
  const sent = [];
  const getToken = mock.fn(async () => `token-${getToken.mock.callCount() + 1}`);
  const fetch = async (_url, init) => (sent.push(init.headers.Authorization), json({}));
  const broker = new Broker("https://b.example", { fetch, getToken });
  await broker.signIn(new AbortController().signal);
  assert.equal(getToken.mock.callCount(), 1);
  await broker.requestPlan({});
  await broker.requestPlan({});
  assert.deepEqual(sent, ["Bearer token-1", "Bearer token-2"]);
});

test("a token that has expired is asked for anew, once", async () => {
  const answer = (count) => (count === 1 ? new Response("", { status: 401 }) : json({ session_id: "s" }));
  const { plan, wanted, sent } = await signedIn(answer, (count) => `token-${count}`);
  assert.deepEqual([plan.session_id, wanted, sent], ["s", [false, true], ["Bearer token-1", "Bearer token-2"]]);
});

for (const [name, answer] of [
  ["401", () => new Response("", { status: 401 })],
  ["a redirect", () => new Response("", { status: 302, headers: { Location: "https://login.example" } })],
  ["a page for signing in", () => new Response("<html>", { headers: { "Content-Type": "text/html; charset=utf-8" } })],
]) {
  test(`${name} means that the user has to sign in, after one fresh token`, async () => {
    const { plan, wanted } = await signedIn(answer, (count) => `token-${count}`);
    assert.deepEqual([plan.code, plan.retryable, wanted], ["sign_in_required", false, [false, true]]);
  });
}

test("the same dead token is not tried twice", async () => {
  const { plan, sent } = await signedIn(() => new Response("", { status: 401 }), () => "dead");
  assert.deepEqual([plan.code, sent], ["sign_in_required", ["Bearer dead"]]);
});

for (const [name, getToken] of [
  ["throws", () => { throw new Error("no"); }],
  ["gives nothing", () => undefined],
  ["gives two lines", () => "a\nb"],
]) {
  test(`a getToken that ${name} is a sign-in that is due`, async () => {
    const { plan, sent } = await signedIn(json({}), getToken);
    assert.deepEqual([plan.code, sent], ["sign_in_required", []]);
  });
}

test("a getToken that never settles is a sign-in that is due", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const outcome = signedIn(json({}), () => new Promise(() => {}));
  await new Promise(setImmediate);
  context.mock.timers.tick(120_000);
  const { plan, sent } = await outcome;
  assert.deepEqual([plan.code, sent], ["sign_in_required", []]);
});

test("a page's own backend can give the plan", async () => {
  const asked = [];
  const broker = new Broker("https://b.example", { getPlan: async ({ agentId }) => (asked.push(agentId), { session_id: "s" }) });
  assert.deepEqual([await broker.requestPlan({ agentId: "elena" }), asked], [{ session_id: "s" }, ["elena"]]);
});

test("a backend that fails is asked again later", async () => {
  const broker = new Broker("https://b.example", { getPlan: async () => { throw new Error("no"); } });
  await assert.rejects(broker.requestPlan({}), { code: "plan_unavailable", retryable: true });
});

test("the page's headers and cookies go to the broker", async () => {
  const sent = [];
  const fetch = async (_url, init) => (sent.push([init.headers["X-Tenant"], init.credentials, init.redirect]), json({}));
  const broker = new Broker("https://b.example", { fetch, headers: () => ({ "X-Tenant": "t" }), credentials: "include" });
  await broker.requestPlan({});
  await broker.reportTurn(REPORT);
  assert.deepEqual(sent, [["t", "include", "manual"], ["t", "include", "manual"]]);
});

test("a broker that can't be reached is asked again", async () => {
  await assert.rejects(asking(new TypeError("fetch failed")).broker.requestPlan({}), { code: "unreachable", retryable: true });
});

test("a plan that is no JSON is asked for again", async () => {
  await assert.rejects(asking(new Response("<html>")).broker.requestPlan({}), { code: "unreadable", retryable: true });
});

test("a caller who leaves gets its own abort, not an error of ours", async () => {
  const leaving = AbortSignal.abort(new Error("left"));
  await assert.rejects(asking(new Error("aborted")).broker.requestPlan({}, leaving), { message: "left" });
});

for (const [header, ms] of [[null, 0], ["", 0], ["7", 7_000], ["900", 60_000], ["-3", 0], ["soon", 0], ["Thu, 01 Jan 2026 00:00:05 GMT", 5_000], ["Thu, 01 Jan 1970 00:00:00 GMT", 0]]) {
  test(`Retry-After ${JSON.stringify(header)} is ${ms} ms`, () => {
    assert.equal(retryAfterMs(header, Date.parse("2026-01-01T00:00:00Z")), ms);
  });
}
