/** The demo page: a whole talk with `VoiceSession` alone. Start here to build your own. */

import { Broker } from "./broker.js";
import { EventList, fitViewport, signInAddress } from "./demo-page.js";
import { Transcript } from "./demo-transcript.js";
import { Meter } from "./meter.js";
import { VoiceSession } from "./voice-session.js";

/** @typedef {import("./voice-session.js").VoiceSessionEvents} Events */

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

/** Moves that nobody needs to hear of: the talk was not broken. */
const PLANNED = ["first_choice", "session_limit", "agent_switched"];

/** What people read for a state. @type {Record<string, string>} */
const DOING = {
  idle: "Ready when you are",
  prompting: "Allow the microphone",
  requesting: "Starting",
  connecting: "Connecting",
  reconnecting: "Reconnecting",
  listening: "Listening",
  thinking: "Thinking",
  speaking: "Speaking",
  unheard: "The microphone is in use elsewhere",
  muted: "You are muted",
  ended: "The talk is over",
  failed: "Not connected",
};

const base = new URL(".", document.baseURI).href;
const broker = new Broker(base);
const meter = new Meter(/** @type {HTMLCanvasElement} */ (find("meter")));
const talk = /** @type {HTMLButtonElement} */ (find("talk"));
const hangup = /** @type {HTMLButtonElement} */ (find("hangup"));
const mute = /** @type {HTMLButtonElement} */ (find("mute"));
const type = /** @type {HTMLButtonElement} */ (find("type"));
const send = /** @type {HTMLButtonElement} */ (find("send"));
const text = /** @type {HTMLInputElement} */ (find("text"));
const agent = /** @type {HTMLSelectElement} */ (find("agent"));
const stop = /** @type {HTMLButtonElement} */ (find("stop"));
const transcript = new Transcript(find("transcript"), find("captions"));
const events = new EventList(find("events"));
const notice = find("notice");

/** `?transports=websocket_proxy,…` restricts the transports. */
const allowedTransports = new URLSearchParams(location.search).get("transports");
/** @type {VoiceSession | null} */
let session = null;
let muted = false;
/** Whether the talk hears the user, who can type as well. */
let hears = true;
/** The resource that the talk used last, and why it left it; null while nothing is broken. @type {{resource: string | null, reason: string} | null} */
let broken = null;
/** Breaks a resource on request, where Azure is simulated. @type {import("./simulated.js").ResourceSwitch | null} */
let resourceSwitch = null;
/** Names of agents, by their ids. @type {Map<string, string>} */
let names = new Map();
/** @type {ReturnType<typeof setTimeout> | undefined} */
let noticeTimer;

/** @param {boolean} microphone */
function startTalk(microphone) {
  clearNotice();
  find("sign-in").hidden = true;
  if (session && !transcript.isEmpty) transcript.note("A new talk");
  broken = null;
  session = new VoiceSession({
    brokerUrl: base,
    agentId: agent.value || undefined,
    microphone,
    transports: allowedTransports ? /** @type {any} */ (allowedTransports.split(",")) : undefined,
  });
  hears = microphone;
  session.setMuted(muted);
  listen(session, "state", ({ state, prompting }) => showState(state, prompting));
  session.tool("show_card", (card) => {
    transcript.card(card);
    return { shown: true };
  });
  listen(session, "activity", showDoing);
  listen(session, "event", (event) => events.add(String(/** @type {{type?: unknown}} */ (event).type)));
  listen(session, "agent", ({ agentId }) => {
    transcript.note(`${nameOf(agentId)} takes over`);
    agent.value = agentId;
  });
  listen(session, "latency", ({ turnMs }) => (find("latency").textContent = `${turnMs} ms to the answer's first sound`));
  listen(session, "tool", ({ name, state, durationMs }) => {
    find("tools").textContent = state === "running" ? `${name} runs` : `${name}: ${state} after ${durationMs} ms`;
  });
  listen(session, "transport", showTransport);
  listen(session, "resuming", showResuming);
  listen(session, "resumed", ({ resource }) => {
    clearNotice();
    noteGoingOn(resource);
    showResource(resource);
  });
  listen(session, "transcript", showLine);
  listen(session, "level", (level) => meter.add(level));
  listen(session, "error", showError);
  session.connect().catch(() => undefined); // the `error` event has shown it
}

function showDoing() {
  const doing = session?.activity ?? session?.state ?? "idle";
  const listening = !hears ? "idle" : muted ? "muted" : "listening";
  find("doing").textContent = DOING[doing === "listening" ? listening : doing] ?? doing;
  find("muted").hidden = !muted || !hears;
  stop.setAttribute("aria-disabled", String(doing !== "speaking"));
}

/**
 * For screen readers: what a state means, and not each turn of the talk, which is heard.
 * @param {string} words
 */
function announce(words) {
  find("announcer").textContent = words;
}

/**
 * The talk goes on after something broke.
 * @param {string | null} resource  where
 */
function noteGoingOn(resource) {
  if (broken === null) return;
  const moved = broken.resource !== null && resource !== null && resource !== broken.resource;
  const why = broken.resource === null ? "The connection broke" : `${broken.resource} ${broken.reason === "quota" ? "is full" : "was lost"}`;
  transcript.note(`${why}. The talk goes on${moved ? ` at ${resource}` : ""}.`);
  broken = null;
}

/**
 * @param {import("./voice-session.js").SessionState} state
 * @param {boolean} [prompting]  the browser asks for the microphone
 */
function showState(state, prompting = false) {
  showDoing();
  if (prompting) find("doing").textContent = DOING.prompting;
  find("prompt").hidden = !prompting;
  find("empty").hidden = prompting || !transcript.isEmpty;
  announce((state === "live" ? `Connected. You can ${hears ? "talk" : "type"}.` : find("doing").textContent) ?? "");
  const over = state === "ended" || state === "failed";
  document.body.dataset.state = state;
  document.body.dataset.session = session?.sessionId ?? "";
  find("state").textContent = state;
  find("session").textContent = session?.sessionId ?? "";
  find("hangup-label").textContent = state === "requesting" || state === "connecting" ? "Cancel" : "Hang up";
  document.title = state === "live" ? "● Talking" : "Talk";
  swapButtons(over ? hangup : talk, over ? talk : hangup);
  if (over && document.activeElement === stop) talk.focus();
  if (!over && document.activeElement === type) hangup.focus();
  type.hidden = !over;
  stop.hidden = over;
  mute.disabled = over || !hears;
  text.disabled = send.disabled = state !== "live";
  if (state === "reconnecting") broken ??= { resource: find("resource").textContent || null, reason: "lost" };
  if (state !== "live") return;
  agent.value = session?.agentId ?? agent.value;
  clearNotice();
  if (PLANNED.includes(find("transport").dataset.reason ?? "")) broken = null;
  noteGoingOn(session?.resource ?? null);
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
  const isChosen = reason === "first_choice" && transport === "websocket_proxy";
  find("reason").textContent = isChosen ? "Through the broker, as this page was told." : (REASONS[reason] ?? "");
  showResource(resource);
}

/** @param {string | null} resource */
function showResource(resource) {
  find("resource").textContent = resource ?? "";
  resourceSwitch?.uses(resource);
}

/** @param {Events["resuming"]} resuming */
function showResuming({ reason, retryAfterMs }) {
  if (reason !== "expiring") broken ??= { resource: session?.resource ?? null, reason };
  const soon = retryAfterMs === null ? "as soon as it does." : `in ${Math.ceil(retryAfterMs / 1000)} s.`;
  const words = RESUMING[reason] ?? RESUMING.lost;
  showNotice(`resuming_${reason}`, reason === "quota" ? `${words} ${soon}` : words);
}

/** @param {Events["transcript"]} line */
function showLine(line) {
  find("empty").hidden = true;
  transcript.show(line, line.speaker === "user" ? "You" : nameOf(session?.agentId ?? "Agent"));
}

/** @param {string} id of an agent */
function nameOf(id) {
  return names.get(id) ?? title(id);
}

/** @param {Events["error"]} error */
function showError({ code, message, retryable, retryAfterMs = 0 }) {
  showNotice(code, message, retryable ? Math.max(NOTICE_MS, retryAfterMs) : null);
  if (code === "sign_in_required") void showSignIn();
  if (code === "switch_failed") agent.value = session?.agentId ?? agent.value;
}

/** The way to sign in, or who has to set one up. */
async function showSignIn() {
  const place = find("sign-in");
  const address = await signInAddress();
  const link = Object.assign(document.createElement("a"), { href: address ?? "", textContent: "Sign in" });
  place.replaceChildren(address ? link : "Nobody can sign in on this page yet. Whoever runs the broker puts a sign-in in front of it, or makes a page that has one: docs/embed.md.");
  place.hidden = false;
}

/**
 * @param {string} code
 * @param {string} message
 * @param {number | null} [shownMs]  null: until the next talk
 */
function showNotice(code, message, shownMs = NOTICE_MS) {
  // The notice takes room from the transcript.
  transcript.change(() => {
    notice.textContent = message;
    notice.dataset.code = code;
    notice.dataset.kind = shownMs === null ? "fatal" : "passing";
    notice.hidden = false;
  });
  clearTimeout(noticeTimer);
  if (shownMs !== null) noticeTimer = setTimeout(clearNotice, shownMs);
}

function clearNotice() {
  clearTimeout(noticeTimer);
  notice.hidden = true;
}

async function showAgents() {
  const status = /** @type {any} */ (await broker.status().catch(() => null));
  names = agentNames(status?.agents);
  agent.replaceChildren(...[...names].map(([id, name]) => new Option(name, id)));
  const simulated = isLoopback(status?.endpoint);
  find("simulated").hidden = !simulated;
  if (simulated) await showSwitch().catch(console.error);
}

async function showSwitch() {
  const { ResourceSwitch } = await import("./simulated.js"); // nobody else's page needs it
  resourceSwitch = new ResourceSwitch(base, /** @type {HTMLButtonElement} */ (find("break")));
  resourceSwitch.uses(find("resource").textContent || null);
  await resourceSwitch.show();
}

/**
 * Whether Azure is simulated: the real one is never on loopback.
 * @param {unknown} endpoint
 */
function isLoopback(endpoint) {
  return typeof endpoint === "string" && URL.canParse(endpoint) && /^(127\.|localhost$|\[::1\]$)/.test(new URL(endpoint).hostname);
}

/**
 * The agents of `/status`, by id, with the names that people know.
 * @param {any} agents
 * @returns {Map<string, string>}
 */
function agentNames(agents) {
  const known = agents ?? Object.fromEntries(FALLBACK_AGENTS.map((id) => [id, {}]));
  return new Map(Object.entries(known).map(([id, { name }]) => [id, typeof name === "string" ? name : title(id)]));
}

function setUpTabs() {
  /** Loaded when somebody looks at it. @type {Promise<import("./health.js").HealthPanel> | null} */
  let health = null;
  let isWanted = false;
  const showHealth = async () => {
    health ??= import("./health.js").then(({ HealthPanel }) => new HealthPanel(broker));
    try {
      (await health).setVisible(isWanted);
    } catch {
      health = null; // asked for again with the next look
      find("health-notice").textContent = "This view could not be loaded. Look again in a moment.";
      find("health-notice").hidden = false;
    }
  };
  const tabs = [find("tab-talk"), find("tab-health")];
  const select = (/** @type {number} */ chosen) => {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === chosen));
      tab.tabIndex = index === chosen ? 0 : -1;
      find(String(tab.getAttribute("aria-controls"))).hidden = index !== chosen;
    });
    isWanted = chosen === 1;
    if (isWanted || health) void showHealth();
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

talk.addEventListener("click", () => startTalk(true));
type.addEventListener("click", () => startTalk(false));
hangup.addEventListener("click", () => void session?.disconnect());
mute.addEventListener("click", () => {
  muted = !muted;
  session?.setMuted(muted);
  mute.setAttribute("aria-pressed", String(muted));
  mute.textContent = muted ? "Muted" : "Mute";
  announce(muted ? "Your microphone is off." : "Your microphone is on.");
  showDoing();
});
agent.addEventListener("change", () => {
  session?.switchAgent(agent.value);
});
find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (session?.state !== "live") return;
  try {
    session.sendText(text.value);
    text.value = "";
  } catch (error) {
    const { code = "page_fault", message } = /** @type {Error & {code?: string}} */ (error);
    showNotice(code, message); // the text stays
  }
});
stop.addEventListener("click", () => session?.interrupt());
find("announce").addEventListener("change", (event) => {
  transcript.announces = /** @type {HTMLInputElement} */ (event.target).checked;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") session?.interrupt();
});

fitViewport(document.body);
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
