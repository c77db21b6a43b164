/** The demo page: a whole talk with `VoiceSession` alone. Start here to build your own. */

import { Broker } from "./broker.js";
import { HealthPanel } from "./health.js";
import { Meter } from "./meter.js";
import { ResourceSwitch } from "./simulated.js";
import { VoiceSession } from "./voice-session.js";

/** @typedef {import("./voice-session.js").VoiceSessionEvents} Events */

const MAX_LINES = 200;
const NOTICE_MS = 8_000;
const FALLBACK_AGENTS = ["elena", "marcus", "sage"];

/** Why this transport is used, and not a better one. @type {Record<string, string>} */
const REASONS = {
  first_choice: "Straight to Azure.",
  not_minted: "Azure gives no tokens now, so the talk goes through the broker.",
  sdp_refused: "Azure refused the direct call.",
  sdp_timeout: "Azure was slow to take the direct call.",
  ice_failed: "This network blocks direct audio.",
  ice_timeout: "This network blocks direct audio.",
  channel_closed: "The direct connection closed.",
  token_expired: "The token ran out before it was used.",
  token_not_ephemeral: "The token was refused: it is not a short-lived one.",
  ticket_spent: "With a new ticket.",
  socket_closed: "The last connection broke off.",
  socket_timeout: "The last connection took too long.",
  azure_dropped: "Azure ended the last connection.",
  azure_unavailable: "Azure was not reachable for a while.",
  not_reading: "The network was too slow.",
  draining: "The broker was renewed.",
  session_limit: "Moved on before Azure's time limit.",
  agent_switched: "With another agent.",
  hung_up: "You hung up.",
};

/** What the broker does while it connects a talk to Azure again, by its reason. @type {Record<string, string>} */
const RESUMING = {
  lost: "Azure ended the connection. The talk goes on in a moment.",
  silent: "Azure does not answer. The talk goes on in a moment.",
  expiring: "Azure's time limit is near. The talk moves on.",
  quota: "Azure takes no new talk now. This one goes on",
  refused: "Azure refused to go on. The talk goes on in a moment.",
};

const base = new URL(".", document.baseURI).href;
const broker = new Broker(base);
const resourceSwitch = new ResourceSwitch(base, /** @type {HTMLButtonElement} */ (find("break")));
const meter = new Meter(/** @type {HTMLCanvasElement} */ (find("meter")));
const talk = /** @type {HTMLButtonElement} */ (find("talk"));
const hangup = /** @type {HTMLButtonElement} */ (find("hangup"));
const mute = /** @type {HTMLButtonElement} */ (find("mute"));
const send = /** @type {HTMLButtonElement} */ (find("send"));
const text = /** @type {HTMLInputElement} */ (find("text"));
const agent = /** @type {HTMLSelectElement} */ (find("agent"));
const transcript = find("transcript");
const notice = find("notice");

/** `?transports=websocket_proxy,…` restricts the transports. */
const allowedTransports = new URLSearchParams(location.search).get("transports");
/** @type {VoiceSession | null} */
let session = null;
let muted = false;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let noticeTimer;

function startTalk() {
  clearNotice();
  session = new VoiceSession({
    brokerUrl: base,
    agentId: agent.value || undefined,
    transports: allowedTransports ? /** @type {any} */ (allowedTransports.split(",")) : undefined,
  });
  session.setMuted(muted);
  listen(session, "state", ({ state }) => showState(state));
  listen(session, "transport", showTransport);
  listen(session, "resuming", showResuming);
  listen(session, "resumed", ({ resource }) => {
    clearNotice();
    showResource(resource);
  });
  listen(session, "transcript", showLine);
  listen(session, "level", (level) => meter.add(level));
  listen(session, "error", showError);
  session.connect().catch(() => undefined); // the `error` event has shown it
}

/** @param {import("./voice-session.js").SessionState} state */
function showState(state) {
  const over = state === "ended" || state === "failed";
  document.body.dataset.state = state;
  document.body.dataset.session = session?.sessionId ?? "";
  find("state").textContent = state;
  document.title = state === "live" ? "● Talking" : "Talk";
  swapButtons(over ? hangup : talk, over ? talk : hangup);
  mute.disabled = over;
  text.disabled = send.disabled = state !== "live";
  if (state !== "live") return;
  clearNotice();
  showResource(session?.resource ?? null); // the proxy's word counts, which came after the plan's
}

/**
 * Shows `next` instead of `old`, and moves the keyboard's focus along.
 * @param {HTMLButtonElement} old
 * @param {HTMLButtonElement} next
 */
function swapButtons(old, next) {
  if (old.hidden) return;
  const focused = document.activeElement === old;
  next.hidden = false;
  old.hidden = true;
  if (focused) next.focus();
}

/** @param {Events["transport"]} used */
function showTransport({ transport, reason, resource }) {
  find("transport").textContent = transport ?? "";
  find("transport").dataset.reason = reason;
  find("reason").textContent = REASONS[reason] ?? "";
  showResource(resource);
}

/** @param {string | null} resource */
function showResource(resource) {
  find("resource").textContent = resource ?? "";
  resourceSwitch.uses(resource);
}

/** @param {Events["resuming"]} resuming */
function showResuming({ reason, retryAfterMs }) {
  const soon = retryAfterMs === null ? "as soon as it does." : `in ${Math.ceil(retryAfterMs / 1000)} s.`;
  const words = RESUMING[reason] ?? RESUMING.lost;
  showNotice(`resuming_${reason}`, reason === "quota" ? `${words} ${soon}` : words);
}

/** @param {Events["transcript"]} line */
function showLine({ speaker, text: words, final, turnId, interrupted }) {
  find("empty").hidden = true;
  const atEnd = transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 40;
  const element = lineElement(turnId, speaker);
  element.dataset.final = String(final);
  element.dataset.interrupted = String(interrupted);
  const shown = final && words === "" ? "(not understood)" : words;
  /** @type {HTMLElement} */ (element.querySelector(".words")).textContent = shown;
  while (transcript.querySelectorAll(".line").length > MAX_LINES) transcript.querySelector(".line")?.remove();
  if (atEnd) transcript.scrollTop = transcript.scrollHeight;
}

/**
 * @param {string} turnId
 * @param {string} speaker
 * @returns {HTMLElement}
 */
function lineElement(turnId, speaker) {
  const known = transcript.querySelector(`[data-turn="${CSS.escape(turnId)}"]`);
  if (known instanceof HTMLElement) return known;
  const line = document.createElement("div");
  line.className = "line";
  line.dataset.turn = turnId;
  line.dataset.speaker = speaker;
  const who = document.createElement("span");
  who.className = "who";
  who.textContent = speaker === "user" ? "You" : title(session?.agentId ?? "Agent");
  const words = document.createElement("p");
  words.className = "words";
  line.append(who, words);
  transcript.append(line);
  return line;
}

/** @param {Events["error"]} error */
function showError({ code, message, retryable, retryAfterMs = 0 }) {
  showNotice(code, message, retryable ? Math.max(NOTICE_MS, retryAfterMs) : null);
}

/**
 * @param {string} code
 * @param {string} message
 * @param {number | null} [shownMs]  null: until the next talk
 */
function showNotice(code, message, shownMs = NOTICE_MS) {
  notice.textContent = message;
  notice.dataset.code = code;
  notice.dataset.kind = shownMs === null ? "fatal" : "passing";
  notice.hidden = false;
  clearTimeout(noticeTimer);
  if (shownMs !== null) noticeTimer = setTimeout(clearNotice, shownMs);
}

function clearNotice() {
  clearTimeout(noticeTimer);
  notice.hidden = true;
}

async function showAgents() {
  const status = /** @type {any} */ (await broker.status().catch(() => null));
  const names = agentNames(status?.agents);
  agent.replaceChildren(...names.map((name) => new Option(title(name), name)));
  const simulated = isLoopback(status?.endpoint);
  find("simulated").hidden = !simulated;
  if (simulated) await resourceSwitch.show();
}

/**
 * Whether Azure is simulated: the real one is never on loopback.
 * @param {unknown} endpoint
 */
function isLoopback(endpoint) {
  return typeof endpoint === "string" && URL.canParse(endpoint) && /^(127\.|localhost$|\[::1\]$)/.test(new URL(endpoint).hostname);
}

/**
 * Names from `/status`: a list of agents, or an object of them.
 * @param {any} agents
 * @returns {string[]}
 */
function agentNames(agents) {
  const names = Array.isArray(agents)
    ? agents.map((one) => (typeof one === "string" ? one : (one?.agent_id ?? one?.id ?? one?.name)))
    : Object.keys(agents ?? {});
  const known = names.filter((name) => typeof name === "string");
  return known.length > 0 ? known : FALLBACK_AGENTS;
}

function setUpTabs() {
  const health = new HealthPanel(broker);
  const tabs = [find("tab-talk"), find("tab-health")];
  const select = (/** @type {number} */ chosen) => {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === chosen));
      tab.tabIndex = index === chosen ? 0 : -1;
      find(String(tab.getAttribute("aria-controls"))).hidden = index !== chosen;
    });
    health.setVisible(chosen === 1);
    history.replaceState(null, "", chosen === 1 ? "#health" : location.pathname + location.search);
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => select(index));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      select(1 - index);
      tabs[1 - index].focus();
    });
  });
  if (location.hash === "#health") select(1);
}

talk.addEventListener("click", startTalk);
hangup.addEventListener("click", () => void session?.disconnect());
mute.addEventListener("click", () => {
  muted = !muted;
  session?.setMuted(muted);
  mute.setAttribute("aria-pressed", String(muted));
  mute.textContent = muted ? "Muted" : "Mute";
});
agent.addEventListener("change", () => session?.switchAgent(agent.value));
find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (session?.state !== "live") return;
  session.sendText(text.value);
  text.value = "";
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") session?.interrupt();
});

setUpTabs();
void showAgents();

/**
 * @template {keyof Events} Name
 * @param {VoiceSession} target
 * @param {Name} name
 * @param {(detail: Events[Name]) => void} take
 */
function listen(target, name, take) {
  target.addEventListener(name, (event) => take(/** @type {CustomEvent} */ (event).detail));
}

/** @param {string} id */
function find(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}

/** @param {string} name */
function title(name) {
  return name.charAt(0).toUpperCase() + name.slice(1);
}
