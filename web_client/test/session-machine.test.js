import assert from "node:assert/strict";
import { test } from "node:test";

import { FIRST_BACKOFF_MS, MAX_ATTEMPTS, MAX_BACKOFF_MS, MAX_POOR_PLANS, decide, publicName } from "../session-machine.js";

const NOW = { nowMs: 1_000, random: 0.5 };
const LATE = { nowMs: 1_000 + 70_000, random: 0.5 };
const TOO_LATE = { nowMs: 1_000 + 200_000, random: 0.5 };

const connection = (transport, expiresInS) => ({ transport, url: "https://x", token: "t", protocols: ["realtime"], expiresInS });
const WEBRTC = connection("webrtc", 60);
const RELAY = connection("webrtc_relay", 7_200);
const PROXY = connection("websocket_proxy", 180);
const VOICE_LIVE = connection("webrtc_websocket", 180);
const PLAN = { sessionId: "s", sessionToken: "t", agentId: "elena", degraded: false, connections: [WEBRTC, RELAY, PROXY], receivedAtMs: 1_000 };
const UNIFIED = { ...PLAN, connections: [VOICE_LIVE, PROXY] };
const DEGRADED = { ...PLAN, degraded: true, connections: [PROXY] };
const POOR = { ...DEGRADED, outlook: "poor", retryAfterMs: 8_000 };

const progress = (change = {}) => ({ resume: false, attempt: 0, noWebRtc: false, onlySeen: false, poorPlans: 0, reason: "first_choice", ...change });
const requesting = (change) => ({ name: "requesting", progress: progress(change) });
const connecting = (index, change, plan = PLAN) => ({ name: "connecting", progress: progress(change), plan, index });
const live = (index = 0, change, plan = PLAN) => ({ name: "live", progress: progress({ resume: true, ...change }), plan, index, sinceMs: 1_000 });
const waiting = (change) => ({ name: "waiting", progress: progress(change), delayMs: 1 });
const failed = (code, change) => ({ type: "failed", failure: { code, message: "m", ...change } });
const dropped = (code, change) => ({ type: "dropped", failure: { code, message: "m", ...change } });
const planFailed = (change) => ({ type: "plan_failed", failure: { code: "plan_failed", message: "m", ...change } });

/** What a decision comes to, in one line: state, its reason, what is opened. */
function summary({ state, actions }) {
  const done = actions.map((action) => (action.do === "open" ? `open ${action.connection.transport}` : action.do));
  return [state.name, state.progress?.reason ?? state.code ?? state.reason ?? "", ...done].join(" | ");
}

/** [what happens, state, event, moment, what comes of it] */
const TABLE = [
  ["Talk is pressed", { name: "idle" }, { type: "talk" }, NOW, "requesting | first_choice | request_plan"],
  ["Talk is pressed again after the end", { name: "ended", reason: "hung_up" }, { type: "talk" }, NOW, "requesting | first_choice | request_plan"],
  ["Talk is pressed again after a failure", { name: "failed", code: "x", message: "m" }, { type: "talk" }, NOW, "requesting | first_choice | request_plan"],
  ["Talk is pressed twice", requesting(), { type: "talk" }, NOW, "requesting | first_choice"],
  ["a plan comes", requesting(), { type: "plan", plan: PLAN }, NOW, "connecting | first_choice | open webrtc"],
  ["a degraded plan comes", requesting(), { type: "plan", plan: DEGRADED }, NOW, "connecting | not_minted | open websocket_proxy"],
  ["the plan says that Azure is down", requesting(), { type: "plan", plan: POOR }, NOW, "waiting | azure_unavailable | close | report | wait"],
  ["the plan says so in mid-talk", requesting({ resume: true }), { type: "plan", plan: POOR }, NOW, "waiting | azure_unavailable | close | report | wait"],
  ["Azure is down and the plan has no connection", requesting(), { type: "plan", plan: { ...POOR, connections: [] } }, NOW, "waiting | azure_unavailable | close | report | wait"],
  ["the wait for Azure is over", waiting({ poorPlans: 1, reason: "azure_unavailable" }), { type: "wake" }, NOW, "requesting | azure_unavailable | request_plan"],
  ["a plan for the limit that is near comes", live(), { type: "replace", plan: PLAN, reason: "session_limit" }, NOW, "connecting | session_limit | open webrtc"],
  ["that plan says that Azure is down", live(), { type: "replace", plan: POOR, reason: "session_limit" }, NOW, "live | first_choice"],
  ["that plan comes after the talk was lost", waiting({ resume: true }), { type: "replace", plan: PLAN, reason: "session_limit" }, NOW, "waiting | first_choice"],
  ["Azure is back", requesting({ poorPlans: 3, reason: "azure_unavailable" }), { type: "plan", plan: PLAN }, NOW, "connecting | azure_unavailable | open webrtc"],
  ["Azure has been down for long", requesting({ poorPlans: MAX_POOR_PLANS }), { type: "plan", plan: POOR }, NOW, "failed | azure_unavailable | close | report"],
  ["the user hangs up while Azure is down", waiting({ poorPlans: 1 }), { type: "hang_up", reason: "hung_up" }, NOW, "ended | hung_up | close"],
  ["a plan comes after the hang-up", { name: "ended", reason: "hung_up" }, { type: "plan", plan: PLAN }, NOW, "ended | hung_up"],
  ["the token expired on its way", requesting(), { type: "plan", plan: PLAN }, LATE, "connecting | token_expired | open webrtc_relay"],
  ["the plan is wholly out of date", requesting({ noWebRtc: true }), { type: "plan", plan: PLAN }, TOO_LATE, "requesting | ticket_spent | close | request_plan"],
  ["the connection opens", connecting(0), { type: "opened" }, NOW, "live | first_choice"],
  ["SDP is refused", connecting(0), failed("sdp_refused"), NOW, "connecting | sdp_refused | open webrtc_relay"],
  ["SDP is slow", connecting(0), failed("sdp_timeout"), NOW, "connecting | sdp_timeout | open webrtc_relay"],
  ["the key is not ephemeral", connecting(0), failed("token_not_ephemeral"), NOW, "connecting | token_not_ephemeral | open webrtc_relay"],
  ["the relay is refused too", connecting(1), failed("sdp_refused"), NOW, "connecting | sdp_refused | open websocket_proxy"],
  ["ICE fails", connecting(0), failed("ice_failed"), NOW, "connecting | ice_failed | open websocket_proxy"],
  ["ICE takes too long", connecting(0), failed("ice_timeout"), NOW, "connecting | ice_timeout | open websocket_proxy"],
  ["ICE fails behind the relay", connecting(1), failed("ice_failed"), NOW, "connecting | ice_failed | open websocket_proxy"],
  ["the ticket was spent", connecting(2), failed("ticket_spent"), NOW, "requesting | ticket_spent | close | request_plan"],
  ["the ticket was spent again", connecting(2, { attempt: 1 }), failed("ticket_spent"), NOW, "waiting | ticket_spent | close | wait"],
  ["the broker drains", connecting(2), failed("draining"), NOW, "requesting | draining | close | request_plan"],
  ["the proxy's Azure is silent", connecting(2), failed("azure_dropped"), NOW, "waiting | azure_dropped | close | wait"],
  ["the origin is refused", connecting(2), failed("refused", { fatal: true, reportAs: "origin" }), NOW, "failed | origin | close | report"],
  ["the plan is refused for good", requesting(), planFailed({ fatal: true, reportAs: "unknown_agent" }), NOW, "failed | unknown_agent | close | report"],
  ["the broker is away", requesting(), planFailed(), NOW, "waiting | first_choice | close | wait"],
  ["the broker is away for the last time", requesting({ attempt: MAX_ATTEMPTS.first - 1 }), planFailed(), NOW, "failed | plan_failed | close | report"],
  ["the broker is away in mid-talk, for longer", requesting({ resume: true, attempt: MAX_ATTEMPTS.first }), planFailed(), NOW, "waiting | first_choice | close | wait"],
  ["the wait is over", waiting(), { type: "wake" }, NOW, "requesting | first_choice | request_plan"],
  ["a timer rings late", live(), { type: "wake" }, NOW, "live | first_choice"],
  ["the data channel dies", live(), dropped("channel_closed"), NOW, "requesting | channel_closed | close | request_plan"],
  ["ICE dies in mid-talk", live(), dropped("ice_failed"), NOW, "requesting | ice_failed | close | request_plan"],
  ["the plan after that leaves WebRTC out", requesting({ resume: true, noWebRtc: true, reason: "ice_failed" }), { type: "plan", plan: PLAN }, NOW, "connecting | ice_failed | open websocket_proxy"],
  ["WebRTC is all that is wanted", requesting({ resume: true, noWebRtc: true }), { type: "plan", plan: { ...PLAN, connections: [WEBRTC, RELAY] } }, NOW, "connecting | first_choice | open webrtc"],
  ["Voice Live takes the call", requesting(), { type: "plan", plan: UNIFIED }, NOW, "connecting | first_choice | open webrtc_websocket"],
  ["Voice Live has no WebRTC", connecting(0, {}, UNIFIED), failed("azure_dropped"), NOW, "connecting | azure_dropped | open websocket_proxy"],
  ["Voice Live's media is blocked", connecting(0, {}, UNIFIED), failed("ice_timeout"), NOW, "connecting | ice_timeout | open websocket_proxy"],
  ["Voice Live's ticket was spent", connecting(0, {}, UNIFIED), failed("ticket_spent"), NOW, "requesting | ticket_spent | close | request_plan"],
  ["Voice Live's ticket expired on its way", requesting(), { type: "plan", plan: UNIFIED }, TOO_LATE, "requesting | ticket_spent | close | request_plan"],
  ["the control socket of a call is lost", live(0, {}, UNIFIED), dropped("azure_dropped"), NOW, "waiting | azure_dropped | close | wait"],
  ["a call after that is tried again", requesting({ resume: true, attempt: 1 }), { type: "plan", plan: UNIFIED }, NOW, "connecting | first_choice | open webrtc_websocket"],
  ["the proxy fails the talk after that", requesting({ resume: true, reason: "azure_dropped" }), { type: "plan", plan: UNIFIED }, NOW, "connecting | azure_dropped | open webrtc_websocket"],
  ["a plan comes for a call that flaps", requesting({ resume: true, noWebRtc: true }), { type: "plan", plan: UNIFIED }, NOW, "connecting | first_choice | open websocket_proxy"],
  ["a call may not stay unseen", live(0), dropped("not_verified"), NOW, "requesting | not_verified | close | request_plan"],
  ["the plan after that leaves out what is unseen", requesting({ resume: true, onlySeen: true }), { type: "plan", plan: { ...PLAN, connections: [WEBRTC, VOICE_LIVE, RELAY] } }, NOW, "connecting | first_choice | open webrtc_relay"],
  ["Azure drops the proxy's talk", live(2), dropped("azure_dropped"), NOW, "waiting | azure_dropped | close | wait"],
  ["the socket breaks", live(2), dropped("socket_closed"), NOW, "waiting | socket_closed | close | wait"],
  ["Azure ends the session", live(), dropped("session_limit"), NOW, "requesting | session_limit | close | request_plan"],
  ["the session's limit comes near", live(), { type: "move", reason: "session_limit" }, NOW, "requesting | session_limit | close | request_plan"],
  ["another agent is wanted", live(), { type: "move", reason: "agent_switched" }, NOW, "requesting | agent_switched | close | request_plan"],
  ["another agent is wanted before the plan came", requesting(), { type: "move", reason: "agent_switched" }, NOW, "requesting | agent_switched | close | request_plan"],
  ["the agent ends the talk", live(2), dropped("ended_by_agent", { fatal: true }), NOW, "ended | ended_by_agent | close"],
  ["a talk ends for good", live(2), dropped("refused", { fatal: true, reportAs: "too_long" }), NOW, "failed | too_long | close | report"],
  ["the user hangs up", live(), { type: "hang_up", reason: "hung_up" }, NOW, "ended | hung_up | close"],
  ["the user hangs up while waiting", waiting(), { type: "hang_up", reason: "hung_up" }, NOW, "ended | hung_up | close"],
  ["the user hangs up what never began", { name: "idle" }, { type: "hang_up", reason: "hung_up" }, NOW, "idle | "],
  ["a hang-up does not hide a failure", { name: "failed", code: "x", message: "m" }, { type: "hang_up", reason: "hung_up" }, NOW, "failed | x"],
  ["the microphone is refused", requesting(), { type: "microphone_failed", failure: { code: "refused", reportAs: "microphone_denied", message: "m" } }, NOW, "failed | microphone_denied | close | report"],
];

for (const [name, state, event, moment, expected] of TABLE) {
  test(`when ${name}: ${expected}`, () => assert.equal(summary(decide(state, event, moment)), expected));
}

test("waits double up to a limit, with at most half taken off by jitter", () => {
  for (let attempt = 0; attempt < MAX_ATTEMPTS.resume - 1; attempt += 1) {
    const full = Math.min(MAX_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** attempt);
    for (const random of [0, 0.999]) {
      const { state } = decide(requesting({ resume: true, attempt }), planFailed(), { nowMs: 0, random });
      assert.ok(state.delayMs >= full / 2 && state.delayMs <= full, `${attempt}: ${state.delayMs} of ${full}`);
    }
  }
});

test("a poor plan is told in words, and its wait is never shortened", () => {
  for (const [random, delayMs, words] of [
    [0, 8_000, "8 s"],
    [0.999, 9_998, "10 s"],
  ]) {
    const { state, actions } = decide(requesting(), { type: "plan", plan: POOR }, { nowMs: 0, random });
    assert.equal(state.delayMs, delayMs);
    const told = actions.find((action) => action.do === "report");
    assert.deepEqual(told, {
      do: "report",
      code: "azure_unavailable",
      message: `Azure is not reachable now; we try again in ${words}.`,
      retryable: true,
      retryAfterMs: delayMs,
    });
  }
});

test("poor plans are no failed attempts, and a good one ends their count", () => {
  let { state } = decide(requesting({ attempt: 2 }), { type: "plan", plan: POOR }, NOW);
  assert.deepEqual([state.progress.attempt, state.progress.poorPlans], [2, 1]);
  ({ state } = decide(decide(state, { type: "wake" }, NOW).state, { type: "plan", plan: PLAN }, NOW));
  assert.deepEqual([state.name, state.progress.poorPlans], ["connecting", 0]);
});

test("Retry-After is obeyed", () => {
  assert.equal(decide(requesting(), planFailed({ retryAfterMs: 30_000 }), NOW).state.delayMs, 30_000);
});

test("a talk that lived for a while begins anew in its attempts; one that flaps is given up in the end", () => {
  const steady = decide(live(2, { attempt: 7 }), dropped("socket_closed"), { nowMs: 20_000, random: 0 });
  assert.equal(steady.state.progress.attempt, 1);
  let state = live(2);
  let drops = 0;
  for (; state.name !== "failed" && drops < 50; drops += 1) {
    const { progress } = decide(state, dropped("socket_closed"), NOW).state;
    state = progress ? { ...live(2), progress } : { name: "failed" };
  }
  assert.equal(drops, MAX_ATTEMPTS.resume);
});

test("a call that breaks off again before it was steady takes the WebSocket", () => {
  const flapping = { ...live(0, { attempt: 1 }, UNIFIED) };
  assert.equal(decide(flapping, dropped("azure_dropped"), NOW).state.progress.noWebRtc, true);
  assert.equal(decide({ ...flapping, sinceMs: -60_000 }, dropped("azure_dropped"), NOW).state.progress.noWebRtc, false);
});

test("a talk that is told at once, again and again, that its time is up does not spin", () => {
  const first = decide(live(), dropped("session_limit"), NOW);
  assert.equal(first.state.name, "requesting");
  const second = decide({ ...live(), progress: first.state.progress }, dropped("session_limit"), NOW);
  assert.equal(second.state.name, "waiting");
});

test("no event in any state makes the machine throw, or loop without a wait for ever", () => {
  const events = [failed("ticket_spent"), failed("sdp_refused"), failed("azure_dropped"), dropped("channel_closed"), planFailed(), { type: "plan", plan: PLAN }, { type: "wake" }, { type: "opened" }];
  let state = decide({ name: "idle" }, { type: "talk" }, NOW).state;
  let waits = 0;
  for (let step = 0; step < 400 && state.name !== "failed"; step += 1) {
    const event = state.name === "requesting" ? { type: "plan", plan: PLAN } : state.name === "waiting" ? { type: "wake" } : failed("azure_dropped");
    const decision = decide(state, event, NOW);
    waits += decision.actions.some((action) => action.do === "wait") ? 1 : 0;
    state = decision.state;
  }
  assert.equal(state.name, "failed");
  assert.equal(waits, MAX_ATTEMPTS.first - 1);
  for (const from of [{ name: "idle" }, requesting(), connecting(0), live(), waiting(), state]) {
    for (const event of events) assert.ok(decide(from, event, NOW).state);
  }
});

for (const [state, name] of [
  [{ name: "idle" }, "idle"],
  [requesting(), "requesting"],
  [waiting(), "requesting"],
  [connecting(0), "connecting"],
  [live(), "live"],
  [requesting({ resume: true }), "reconnecting"],
  [waiting({ resume: true }), "reconnecting"],
  [connecting(1, { resume: true }), "reconnecting"],
  [{ name: "ended", reason: "" }, "ended"],
  [{ name: "failed", code: "", message: "" }, "failed"],
]) {
  test(`${state.name}${state.progress?.resume ? " after a talk" : ""} is ${name} to the page`, () => assert.equal(publicName(state), name));
}
