/** Talks in React: `useVoiceSession(options)` gives a component its talk's state, and what it may do. */

import { useCallback, useEffect, useMemo, useState, useSyncExternalStore } from "react";

import { VoiceSession } from "./voice-session.js";

/**
 * @typedef {import("./voice-session.js").VoiceSessionOptions} VoiceSessionOptions
 * @typedef {import("./voice-session.js").VoiceSessionEvents} VoiceSessionEvents
 * @typedef {import("./conversation.js").Line} Line
 *
 * @typedef {{[Name in keyof VoiceSessionEvents as `on${Capitalize<Name>}`]?: (detail: VoiceSessionEvents[Name]) => void}} Handlers
 * @typedef {VoiceSessionOptions & Handlers & {tools?: Record<string, import("./page-tools.js").ToolHandler>}} HookOptions
 *   The handlers and tools are the latest render's. Other options count from the next talk.
 *
 * @typedef {object} Snapshot
 * @property {import("./voice-session.js").SessionState} state
 * @property {boolean} prompting
 * @property {import("./voice-session.js").Activity | null} activity
 * @property {import("./plan.js").TransportName | null} transport
 * @property {string | null} agentId
 * @property {Line[]} lines
 * @property {boolean} muted
 * @property {{code: string, message: string, retryable: boolean} | null} error
 */

/** @type {Snapshot} */
const IDLE = { state: "idle", prompting: false, activity: null, transport: null, agentId: null, lines: [], muted: false, error: null };
const SILENT = { input: 0, output: 0 };
const MAX_LINES = 500;
/** A component that mounts again at once, as under strict mode, keeps its talk. */
const UNMOUNTED_AFTER_MS = 200;
/** @type {(keyof VoiceSessionEvents)[]} */
const EVENTS = ["state", "activity", "transport", "agent", "resuming", "resumed", "transcript", "level", "tool", "approval", "latency", "event", "error"];

/** One component's talk, outside of React: rendering twice makes no second one. */
class Store {
  snapshot = IDLE;
  levels = SILENT;
  /** @type {HookOptions} */
  options;
  /** @type {VoiceSession | null} */
  session = null;
  /** @type {Set<() => void>} */
  #listeners = new Set();
  /** @type {Set<() => void>} */
  #levelListeners = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #unmounting;
  #muted = false;

  /** @param {HookOptions} options */
  constructor(options) {
    this.options = options;
  }

  subscribe = (/** @type {() => void} */ listener) => {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  };

  subscribeLevels = (/** @type {() => void} */ listener) => {
    this.#levelListeners.add(listener);
    return () => void this.#levelListeners.delete(listener);
  };

  mount() {
    clearTimeout(this.#unmounting);
    return () => {
      this.#unmounting = setTimeout(() => void this.session?.disconnect(), UNMOUNTED_AFTER_MS);
    };
  }

  /** @param {HookOptions} options  the latest render's */
  update(options) {
    for (const name of Object.keys(this.options.tools ?? {})) {
      if (!options.tools?.[name]) this.session?.tool(name, null);
    }
    this.options = options;
    if (this.session) this.#giveTools(this.session);
  }

  connect = () => {
    if (this.session && !["ended", "failed"].includes(this.session.state)) return this.session.connect();
    const { tools: _tools, ...rest } = this.options;
    const entries = Object.entries(rest).filter(([name]) => !/^on[A-Z]/.test(name));
    const session = new VoiceSession(/** @type {VoiceSessionOptions} */ (Object.fromEntries(entries)));
    this.session = session;
    session.setMuted(this.#muted);
    for (const name of EVENTS) session.addEventListener(name, (event) => this.#take(session, name, event.detail));
    this.#giveTools(session);
    this.#set({ ...IDLE, muted: this.#muted });
    return session.connect();
  };

  disconnect = () => this.session?.disconnect() ?? Promise.resolve();

  setMuted = (/** @type {boolean} */ muted) => {
    this.#muted = muted;
    this.session?.setMuted(muted);
    this.#set({ ...this.snapshot, muted });
  };

  /** @param {VoiceSession} session */
  #giveTools(session) {
    for (const [name, handler] of Object.entries(this.options.tools ?? {})) session.tool(name, handler);
  }

  /**
   * @param {VoiceSession} session
   * @param {keyof VoiceSessionEvents} name
   * @param {any} detail
   */
  #take(session, name, detail) {
    if (session === this.session) {
      const { snapshot } = this;
      switch (name) {
        case "state":
          this.#set({ ...snapshot, ...detail, activity: session.activity, error: detail.state === "live" ? null : snapshot.error });
          break;
        case "activity":
        case "transport":
        case "agent":
          this.#set({ ...snapshot, activity: session.activity, transport: session.transport, agentId: session.agentId });
          break;
        case "transcript":
          this.#set({ ...snapshot, lines: withLine(snapshot.lines, detail) });
          break;
        case "error":
          this.#set({ ...snapshot, error: detail });
          break;
        case "level":
          this.levels = detail;
          for (const listener of this.#levelListeners) listener();
      }
    }
    const handler = /** @type {any} */ (this.options)[`on${name[0].toUpperCase()}${name.slice(1)}`];
    handler?.(detail);
  }

  /** @param {Snapshot} snapshot */
  #set(snapshot) {
    this.snapshot = snapshot;
    for (const listener of this.#listeners) listener();
  }
}

/**
 * A talk for this component. It begins with `connect`, which a click has to call, and ends with the component.
 * @param {HookOptions} options
 */
export function useVoiceSession(options) {
  const [store] = useState(() => new Store(options));
  const snapshot = useSyncExternalStore(store.subscribe, () => store.snapshot, () => IDLE);
  useEffect(() => store.update(options));
  useEffect(() => store.mount(), [store]);
  const actions = useMemo(
    () => ({
      connect: store.connect,
      disconnect: store.disconnect,
      setMuted: store.setMuted,
      sendText: (/** @type {string} */ text) => store.session?.sendText(text),
      sendImage: (/** @type {Blob} */ image) => store.session?.sendImage(image),
      interrupt: () => store.session?.interrupt(),
      startSpeaking: () => store.session?.startSpeaking(),
      stopSpeaking: () => store.session?.stopSpeaking(),
      switchAgent: (/** @type {string} */ agentId) => store.session?.switchAgent(agentId),
      approve: (/** @type {string} */ id, /** @type {boolean} */ yes) => store.session?.approve(id, yes),
      /** For `useLevels`. */
      store,
    }),
    [store],
  );
  /** `session` is the talk itself; null before the first `connect`. */
  return useMemo(() => ({ ...snapshot, ...actions, session: store.session }), [actions, snapshot, store]);
}

/**
 * Both sides' loudness, 20 times a second: only the component that reads it is rendered so often.
 * @param {{store: {subscribeLevels: (listener: () => void) => () => void, levels: {input: number, output: number}}}} talk of `useVoiceSession`
 */
export function useLevels({ store }) {
  const get = useCallback(() => store.levels, [store]);
  return useSyncExternalStore(store.subscribeLevels, get, () => SILENT);
}

/**
 * @param {Line[]} lines
 * @param {Line} line
 */
function withLine(lines, line) {
  const place = lines.findIndex(({ turnId }) => turnId === line.turnId);
  return place < 0 ? [...lines, line].slice(-MAX_LINES) : lines.with(place, line);
}
