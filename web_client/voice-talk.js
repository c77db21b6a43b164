/**
 * `<voice-talk broker="https://voice.example.com" agent="elena"></voice-talk>`: a talk in a page, by one tag.
 *
 * Importing this module defines the element. Where there is no `window`, importing it does nothing. Colours and sizes are
 * CSS custom properties (`--voice-talk-…`), parts are `::part(…)`, and labels are attributes (`label-talk="Sprechen"`).
 */

import { VoiceSession } from "./voice-session.js";

const TAG = "voice-talk";
/** A move within the page disconnects the element and connects it again at once. */
const REMOVED_AFTER_MS = 200;

/** What the element says. Each is an attribute: `label-hang-up` and so on. */
const LABELS = {
  "label-talk": "Talk",
  "label-hang-up": "Hang up",
  "label-mute": "Mute",
  "label-unmute": "Unmute",
  "label-send": "Send",
  "label-type": "Type a message",
  "label-hold": "Hold to speak",
  "label-transcript": "Transcript",
  "label-you": "You",
  "label-agent": "Agent",
  "label-idle": "Ready",
  "label-prompting": "Allow the microphone",
  "label-requesting": "Starting",
  "label-connecting": "Connecting",
  "label-reconnecting": "Reconnecting",
  "label-listening": "Listening",
  "label-thinking": "Thinking",
  "label-speaking": "Speaking",
  "label-unheard": "Microphone in use elsewhere",
  "label-switched": "You talk with {agent} now.",
  "label-ended": "Ended",
  "label-failed": "Not connected",
};
const DISCLOSURE = "You talk with an AI.";
/** Lines of the transcript that are kept on screen. */
const LINES = 200;

const STYLE = `
:host { display: block; max-width: 32rem; color: var(--voice-talk-text, CanvasText); font: var(--voice-talk-font, 1rem/1.45 system-ui, sans-serif); }
:host([hidden]) { display: none; }
.box { display: grid; grid-template-columns: minmax(0, 1fr); gap: 0.75rem; padding: 1rem; border: 1px solid var(--voice-talk-border, color-mix(in srgb, currentColor 22%, transparent)); border-radius: var(--voice-talk-radius, 0.75rem); background: var(--voice-talk-background, Canvas); }
p { margin: 0; }
.disclosure { font-size: 0.85em; opacity: 0.85; }
.lines { display: grid; gap: 0.35rem; max-height: var(--voice-talk-height, 16rem); overflow-y: auto; overflow-wrap: anywhere; }
.lines:empty { display: none; }
.who { font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: 0.5rem; align-items: center; }
button, input { font: inherit; min-height: 2.75rem; border-radius: 0.5rem; border: 1px solid color-mix(in srgb, currentColor 45%, transparent); padding: 0 0.9rem; background: transparent; color: inherit; }
button { cursor: pointer; }
button:disabled, input:disabled { opacity: 0.55; cursor: default; }
button:focus-visible, input:focus-visible, .lines:focus-visible { outline: 3px solid var(--voice-talk-accent, #1a56db); outline-offset: 2px; }
.talk { background: var(--voice-talk-accent, #1a56db); border-color: transparent; color: var(--voice-talk-accent-text, #fff); }
form { display: flex; flex: 1 1 12rem; min-width: 0; gap: 0.5rem; }
input { flex: 1; min-width: 0; }
.error { border-inline-start: 4px solid var(--voice-talk-error, #b42318); padding-inline-start: 0.6rem; }
[hidden] { display: none !important; }
`;

/** What the session tells and the element passes on as it is. @type {(keyof import("./voice-session.js").VoiceSessionEvents)[]} */
const PASSED_ON = ["transport", "resuming", "resumed", "level", "tool", "approval", "latency"];

/** The element that talks: a page has one microphone. @type {VoiceTalk | null} */
let talking = null;

const Base = globalThis.HTMLElement ?? class {};

export class VoiceTalk extends Base {
  static observedAttributes = [...Object.keys(LABELS), "disclosure", "microphone", "push-to-talk", "transcript"];

  /** @type {VoiceSession | null} */
  #session = null;
  /** @type {Parts | null} */
  #parts = null;
  #muted = false;
  /** @type {Map<string, HTMLElement>} */
  #lines = new Map();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #removal;
  /** What a page adds to the options of its talks: `getToken`, `headers`, `fetch`, `getPlan` and so on. @type {Partial<import("./voice-session.js").VoiceSessionOptions>} */
  options = {};

  /** The talk that runs, or ran last: for its events, `tool` and so on. Null before the first. */
  get session() {
    return this.#session;
  }

  connectedCallback() {
    clearTimeout(this.#removal);
    this.#parts ??= this.#build();
    this.#style();
    this.#show();
  }

  disconnectedCallback() {
    this.#removal = setTimeout(() => this.hangUp(), REMOVED_AFTER_MS);
  }

  /** `moveBefore` keeps the element, and its talk. */
  connectedMoveCallback() {}

  attributeChangedCallback() {
    this.#show();
  }

  /** Begins a talk; resolves when it is live. Must be called from a click. */
  async talk() {
    if (this.#isTalking) return;
    if (talking && talking !== this) talking.hangUp();
    talking = this;
    this.#fail("");
    const transports = this.getAttribute("transports");
    const session = new VoiceSession({
      brokerUrl: this.getAttribute("broker") || globalThis.location.origin,
      agentId: this.getAttribute("agent") ?? undefined,
      microphone: this.#isOn("microphone", true),
      pushToTalk: this.#isOn("push-to-talk", false),
      transports: transports ? /** @type {any} */ (transports.split(/[\s,]+/).filter(Boolean)) : undefined,
      ...this.options,
    });
    this.#session = session;
    session.setMuted(this.#muted);
    session.addEventListener("state", ({ detail }) => this.#changed(session, "state", detail));
    session.addEventListener("activity", ({ detail }) => this.#changed(session, "activity", detail));
    session.addEventListener("transcript", ({ detail }) => this.#line(session, detail));
    session.addEventListener("agent", ({ detail }) => this.#switched(session, detail));
    session.addEventListener("error", ({ detail }) => {
      if (session === this.#session) this.#fail(detail.message);
      this.#tell("error", detail);
    });
    for (const name of PASSED_ON) session.addEventListener(name, ({ detail }) => this.#tell(name, detail));
    this.dispatchEvent(new CustomEvent("session", { detail: { session } }));
    await session.connect();
  }

  /** Ends the talk, if one runs. */
  hangUp() {
    if (talking === this) talking = null;
    void this.#session?.disconnect();
  }

  /** @param {boolean} muted */
  setMuted(muted) {
    this.#muted = muted;
    this.#session?.setMuted(muted);
    this.#show();
  }

  get #isTalking() {
    const state = this.#session?.state ?? "idle";
    return state !== "idle" && state !== "ended" && state !== "failed";
  }

  /**
   * @param {VoiceSession} session
   * @param {"state" | "activity"} name
   * @param {object} detail
   */
  #changed(session, name, detail) {
    this.#tell(name, detail);
    if (session !== this.#session) return;
    if (session.state === "live") this.#fail("");
    this.#show(/** @type {{prompting?: boolean}} */ (detail).prompting === true);
  }

  /**
   * @param {string} name
   * @param {object} detail
   */
  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** @param {string} name */
  #label(name) {
    return this.getAttribute(name) ?? LABELS[/** @type {keyof typeof LABELS} */ (name)];
  }

  /**
   * Whether an attribute switches something on: `microphone="false"`, `"off"`, `"no"` and `"0"` mean off.
   * @param {string} name
   * @param {boolean} byDefault
   */
  #isOn(name, byDefault) {
    const value = this.getAttribute(name);
    return value === null ? byDefault : !/^(false|off|no|0)$/i.test(value.trim());
  }

  /** @param {boolean} [prompting] */
  #show(prompting = false) {
    const parts = this.#parts;
    if (!parts) return;
    const session = this.#session;
    const isTalking = this.#isTalking;
    const live = session?.state === "live";
    parts.disclosure.textContent = this.getAttribute("disclosure")?.trim() || DISCLOSURE; // it can be said otherwise, not left out
    const hasMicrophone = this.#isOn("microphone", true);
    const doing = session?.activity ?? session?.state ?? "idle";
    const status = prompting ? "prompting" : doing === "listening" && !hasMicrophone ? "idle" : doing;
    parts.status.textContent = this.#label(`label-${status}`);
    parts.box.dataset.state = session?.state ?? "idle";
    const hadFocus = this.shadowRoot?.activeElement;
    parts.talk.textContent = this.#label("label-talk");
    parts.hangUp.textContent = this.#label("label-hang-up");
    parts.talk.hidden = isTalking;
    parts.hangUp.hidden = !isTalking;
    if (hadFocus === parts.talk && isTalking) parts.hangUp.focus();
    if (hadFocus === parts.hangUp && !isTalking) parts.talk.focus();
    const holds = this.#isOn("push-to-talk", false);
    parts.mute.hidden = !isTalking || !hasMicrophone || holds;
    parts.mute.textContent = this.#label(this.#muted ? "label-unmute" : "label-mute");
    parts.mute.setAttribute("aria-pressed", String(this.#muted));
    parts.hold.hidden = !isTalking || !hasMicrophone || !holds;
    parts.hold.disabled = !live;
    parts.hold.textContent = this.#label("label-hold");
    parts.text.placeholder = this.#label("label-type");
    parts.text.setAttribute("aria-label", this.#label("label-type"));
    parts.text.disabled = parts.send.disabled = !live;
    parts.send.textContent = this.#label("label-send");
    parts.lines.hidden = !this.#isOn("transcript", true);
    parts.lines.setAttribute("aria-label", this.#label("label-transcript"));
  }

  /** @param {string} message empty: nothing is wrong */
  #fail(message) {
    if (!this.#parts) return;
    this.#parts.error.textContent = message;
    this.#parts.error.hidden = message === "";
  }

  /**
   * @param {VoiceSession} session
   * @param {import("./conversation.js").Line} line
   */
  #line(session, line) {
    this.#tell("transcript", line);
    const lines = this.#parts?.lines;
    let shown = this.#lines.get(line.turnId);
    if (!lines || session !== this.#session || (line.text === "" && !shown)) return;
    const follows = isAtEnd(lines);
    if (!shown) {
      shown = element("p", { part: `line ${line.speaker}`, dir: "auto" });
      shown.append(element("span", { class: "who" }, `${this.#label(line.speaker === "user" ? "label-you" : "label-agent")}: `), "");
      this.#append(line.turnId, shown);
    }
    /** @type {Text} */ (shown.lastChild).data = line.interrupted ? `${line.text} …` : line.text;
    if (follows) lines.scrollTop = lines.scrollHeight;
  }

  /**
   * Another agent leaves a line of its own.
   * @param {VoiceSession} session
   * @param {{agentId: string, before: string}} detail
   */
  #switched(session, detail) {
    this.#tell("agent", detail);
    const lines = this.#parts?.lines;
    if (!lines || session !== this.#session) return;
    const follows = isAtEnd(lines);
    const words = this.#label("label-switched").replace("{agent}", detail.agentId);
    this.#append(`switch ${performance.now()}`, element("p", { part: "line switch", dir: "auto" }, words));
    if (follows) lines.scrollTop = lines.scrollHeight;
  }

  /**
   * @param {string} id
   * @param {HTMLElement} line
   */
  #append(id, line) {
    this.#parts?.lines.append(line);
    this.#lines.set(id, line);
    for (const [oldest, node] of this.#lines) {
      if (this.#lines.size <= LINES) break;
      node.remove();
      this.#lines.delete(oldest);
    }
  }

  /** @returns {Parts} */
  #build() {
    const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
    const button = (/** @type {string} */ part, type = "button") =>
      /** @type {HTMLButtonElement} */ (element("button", { part, class: part, type }));
    const parts = {
      box: element("div", { part: "box", class: "box" }),
      disclosure: element("p", { part: "disclosure", class: "disclosure" }),
      status: element("p", { part: "status", class: "status", role: "status" }),
      lines: element("div", { part: "transcript", class: "lines", role: "group", tabindex: "0" }),
      error: element("p", { part: "error", class: "error", role: "alert" }),
      talk: button("talk"),
      hangUp: button("hang-up"),
      mute: button("mute"),
      hold: button("hold"),
      send: button("send", "submit"),
      text: /** @type {HTMLInputElement} */ (element("input", { part: "text", type: "text", maxlength: "4000", autocomplete: "off" })),
    };
    const form = element("form", { part: "composer" });
    form.append(parts.text, parts.send);
    const row = element("div", { class: "row" });
    row.append(parts.talk, parts.hangUp, parts.mute, parts.hold, form);
    parts.error.hidden = true;
    parts.box.append(parts.disclosure, parts.status, parts.lines, parts.error, row);
    root.replaceChildren(parts.box);
    parts.talk.addEventListener("click", () => void this.talk().catch(() => undefined)); // `error` has told it
    parts.hangUp.addEventListener("click", () => this.hangUp());
    parts.mute.addEventListener("click", () => this.setMuted(!this.#muted));
    for (const [down, up] of [["pointerdown", "pointerup"], ["keydown", "keyup"]]) {
      parts.hold.addEventListener(down, (event) => isPress(event) && this.#session?.startSpeaking());
      parts.hold.addEventListener(up, (event) => isPress(event) && this.#session?.stopSpeaking());
    }
    for (const gone of ["pointercancel", "pointerleave", "blur"]) parts.hold.addEventListener(gone, () => this.#session?.stopSpeaking());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send(parts.text);
    });
    return parts;
  }

  /** A sheet made by script needs no `style-src 'unsafe-inline'`, and stays behind when the element goes to another document. */
  #style() {
    const root = this.shadowRoot;
    if (!root || root.adoptedStyleSheets.length > 0) return;
    const view = /** @type {(Window & typeof globalThis) | null} */ (this.ownerDocument.defaultView);
    const sheet = new (view ?? globalThis).CSSStyleSheet();
    sheet.replaceSync(STYLE);
    root.adoptedStyleSheets = [sheet];
  }

  /** @param {HTMLInputElement} text */
  #send(text) {
    try {
      this.#session?.sendText(text.value);
      text.value = "";
    } catch (error) {
      this.#fail(error instanceof Error ? error.message : String(error)); // the text stays, to be sent again
    }
  }
}

/**
 * @typedef {object} Parts
 * @property {HTMLElement} box
 * @property {HTMLElement} disclosure
 * @property {HTMLElement} status
 * @property {HTMLElement} lines
 * @property {HTMLElement} error
 * @property {HTMLButtonElement} talk
 * @property {HTMLButtonElement} hangUp
 * @property {HTMLButtonElement} mute
 * @property {HTMLButtonElement} hold
 * @property {HTMLButtonElement} send
 * @property {HTMLInputElement} text
 */

/** @param {HTMLElement} lines where nobody scrolled up */
function isAtEnd(lines) {
  return lines.scrollHeight - lines.scrollTop - lines.clientHeight < 24;
}

/** @param {Event} event  of this document, or of another one that the element was moved to, with classes of its own */
function isPress(event) {
  if (!("key" in event)) return true;
  const { key, repeat } = /** @type {KeyboardEvent} */ (event);
  return (key === " " || key === "Enter") && !repeat;
}

/**
 * @param {string} name
 * @param {Record<string, string>} attributes
 * @param {string} [text]
 */
function element(name, attributes, text = "") {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.textContent = text;
  return made;
}

if (globalThis.customElements) {
  if (!customElements.get(TAG)) customElements.define(TAG, /** @type {any} */ (VoiceTalk));
  else console.warn("voice-talk: another copy of this module is loaded already; that one stays.");
}
