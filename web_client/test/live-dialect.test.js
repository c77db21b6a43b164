import assert from "node:assert/strict";
import { test } from "node:test";

import { LiveDialect } from "../live-dialect.js";

const user = (delta, start_ms, end_ms) => ({ type: "session.input_transcript.delta", delta, start_ms, end_ms });
const agent = (delta, start_ms, end_ms) => ({ type: "session.output_transcript.delta", delta, start_ms, end_ms });
const sound = { type: "session.output_audio.delta", delta: "AAA=" };

/** A dialect whose time is moved, and what it has told. Ids are numbered in the order in which they come. */
function talk(t, overMedia = false) {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const dialect = new LiveDialect({ overMedia });
  const names = new Map();
  const told = [];
  const short = (id) => {
    if (!id) return id;
    if (!names.has(id)) names.set(id, `${id.split("_")[0]}${names.size + 1}`);
    return names.get(id);
  };
  const take = ({ kind, ...fields }) => {
    const shown = [kind, short(fields.itemId ?? fields.responseId), fields.text ?? fields.status ?? fields.code];
    told.push(shown.filter((part) => part !== undefined).join(" "));
  };
  return {
    dialect,
    hear: (...events) => events.forEach((event) => dialect.read(JSON.stringify(event), undefined, take)),
    later: (ms) => t.mock.timers.tick(ms),
    told: () => told.splice(0),
  };
}

test("pieces of both sides become lines, and an answer has a start and an end", (t) => {
  const { hear, later, told } = talk(t);
  hear(user("How ", 0, 400), user("are you?", 400, 900));
  assert.deepEqual(told(), ["speech_started", "transcript_delta user1 How ", "transcript_delta user1 are you?"]);
  later(700);
  assert.deepEqual(told(), ["waiting"]);
  hear(sound, agent("Fine, ", 1_500, 1_800), sound, agent("thanks.", 1_800, 2_100));
  assert.deepEqual(told(), [
    "response_started answer2",
    "audio agent3",
    "transcript_delta agent3 Fine, ",
    "audio agent3",
    "transcript_delta agent3 thanks.",
  ]);
  later(700);
  assert.deepEqual(told(), ["audio_done agent3", "response_done answer2 completed"]);
  later(400);
  assert.deepEqual(told(), ["transcript_done user1 How are you?"]);
  later(3_000);
  assert.deepEqual(told(), ["transcript_done agent3 Fine, thanks."]);
});

test("words that come late belong to the turn before, and a long silence is between two turns", (t) => {
  const { hear, later, told } = talk(t);
  hear(user("One", 0, 400), agent("Yes", 1_000, 1_400), user(" two", 400, 900));
  later(1_100);
  assert.equal(told().at(-1), "transcript_done user1 One two");
  hear(user("Three", 5_000, 5_400), user("Four", 9_000, 9_400));
  later(3_100);
  assert.deepEqual(told().filter((line) => line.startsWith("transcript_done")), [
    "transcript_done agent3 Yes",
    "transcript_done user4 Three",
    "transcript_done user5 Four",
  ]);
});

test("over media the pieces tell when the agent is heard", (t) => {
  const { hear, later, told } = talk(t, true);
  hear(agent("Welcome.", 0, 3_000), sound);
  assert.deepEqual(told(), ["response_started answer1", "playback_started answer1", "transcript_delta agent2 Welcome."]);
  hear(user("Mhm.", 500, 800)); // both speak: the agent goes on
  assert.deepEqual(told(), ["transcript_delta user3 Mhm."]);
  later(3_500);
  assert.deepEqual(told().filter((line) => !line.startsWith("transcript")), []);
  later(200);
  assert.deepEqual(told().filter((line) => !line.startsWith("transcript")), ["response_done answer1 completed", "playback_stopped"]);
});

test("a stopped answer is left out until it pauses, or another one begins", (t) => {
  const { dialect, hear, later, told } = talk(t, true);
  hear(agent("Once upon", 0, 500));
  told();
  assert.equal(dialect.write({ type: "response.cancel" }), null);
  hear(agent(" a time", 500, 900));
  assert.deepEqual(told(), ["response_done answer1 cancelled"]);
  later(1_800);
  assert.deepEqual(told(), ["playback_stopped"]); // it may be heard again
  hear(agent("Anyway", 3_000, 3_400));
  assert.equal(told()[0], "response_started answer3");
  dialect.write({ type: "response.cancel" });
  hear({ type: "response.event", event: { type: "response.created", response: {} } });
  assert.deepEqual(told().slice(-2), ["playback_stopped", "waiting"]);
  later(8_000);
  assert.deepEqual(told().filter((line) => !line.startsWith("transcript")), ["response_done  completed", "playback_stopped"]);
});

test("a lost session ends what was being said, and its successor's timeline begins anew", (t) => {
  const { hear, told } = talk(t);
  hear(user("One", 60_000, 60_400), { type: "broker.resuming", reason: "lost" }, { type: "session.started", session: {} });
  hear(user("Two", 0, 400));
  assert.deepEqual(told(), [
    "speech_started",
    "transcript_delta user1 One",
    "transcript_done user1 One",
    "resuming",
    "speech_started",
    "transcript_delta user2 Two",
  ]);
});

/** [what it is, the events, whether the sound is media, what is told] */
const EVENTS = [
  ["a call of the page's", [{ type: "response.event", delegation_id: "d", event: { type: "response.output_item.done", item: { type: "function_call", call_id: "c1", name: "show", arguments: "{}", status: "completed" } } }], false, ["tool_call"]],
  ["other work of the backend's", [{ type: "response.event", event: { type: "response.output_text.delta", item_id: "m1", delta: "Hi" } }], false, []],
  ["work that is delegated", [{ type: "session.delegation.created", delegation: { id: "d" } }], false, ["waiting"]],
  ["an error of Azure's", [{ type: "error", error: { code: "invalid_event", message: "No." } }], false, ["error invalid_event"]],
  ["an error of the broker's", [{ type: "broker.error", code: "turn_lost", message: "Lost." }], false, ["error turn_lost"]],
  ["a text that is not taken, and its question", [{ type: "broker.error", code: "text_not_taken" }, { type: "broker.error", code: "not_permitted" }], false, ["error text_not_taken"]],
  ["the broker's own", [{ type: "broker.ready", dialect: "live" }, { type: "broker.latency", turn_ms: 7, from: "transcript_end" }], false, ["ready", "latency"]],
  ["the end, through the proxy", [{ type: "session.closed", reason: "expired" }], false, []],
  ["the end over media", [{ type: "session.closed", reason: "expired" }], true, ["session_expired"]],
  ["the content filter over media", [{ type: "session.closed", reason: "content" }], true, ["error content_filter"]],
  ["what nobody needs", [{ type: "session.usage.updated" }, { type: "session.paused" }, { type: "info", code: "x" }, user("", 0, 1), user(7, 0, 1), [], { type: 4 }], false, []],
];
for (const [name, events, overMedia, expected] of EVENTS) {
  test(`GPT-Live: ${name}`, (t) => {
    const { hear, told } = talk(t, overMedia);
    hear(...events);
    assert.deepEqual(told(), expected);
  });
}

test("the page's events are written in GPT-Live's words, and what it does not know is left out", (t) => {
  const { dialect, told } = talk(t);
  const content = [{ type: "input_text", text: "Hi" }];
  const question = { type: "response.create" };
  assert.equal(dialect.write(question), null); // nothing was typed
  assert.deepEqual(dialect.write({ type: "conversation.item.create", item: { id: "m", type: "message", role: "user", content } }), {
    type: "response.item.create",
    item: { type: "message", id: "m", role: "user", content },
  });
  assert.deepEqual(dialect.write(question), question);
  assert.equal(dialect.write(question), null);
  const item = { type: "function_call_output", call_id: "c1", output: "done" };
  assert.deepEqual(dialect.write({ type: "conversation.item.create", item }), { type: "response.item.create", item });
  assert.deepEqual(dialect.write({ type: "broker.agent.switch", agent_id: "b" }), { type: "broker.agent.switch", agent_id: "b" });
  for (const type of ["session.update", "input_audio_buffer.commit", "conversation.item.truncate", "output_audio_buffer.clear"]) {
    assert.equal(dialect.write({ type }), null);
  }
  assert.equal(dialect.write({ type: "conversation.item.create", item: { type: "mcp_approval_response" } }), null);
  assert.equal(dialect.append(new Int16Array([1])), '{"type":"session.input_audio.append","audio":"AQA="}');
  assert.deepEqual(told(), []); // nobody listens yet
});

test("nothing is told after the end", (t) => {
  const { dialect, hear, later, told } = talk(t, true);
  hear(user("Hi", 0, 400), agent("Ho", 500, 900));
  told();
  dialect.close();
  later(20_000);
  assert.deepEqual(told(), []);
});
