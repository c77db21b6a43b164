/**
 * A voice talk from a page, by whatever way works: this module's one class is what pages use.
 *
 *     const session = new VoiceSession({ brokerUrl: "https://voice.example.com", agentId: "elena" });
 *     session.addEventListener("transcript", ({ detail }) => console.log(detail.speaker, detail.text));
 *     button.onclick = () => session.connect();
 *
 * `session-machine.js` decides what comes next; this class performs it.
 */

import { ActivityWatch } from "./activity.js";
import { AudioEngine, listDevices } from "./audio/audio-engine.js";
import { within } from "./bounded.js";
import { Broker } from "./broker.js";
import { approvalEvent, imageEvent, pushToTalkEvent } from "./events.js";
import { errorWithCode, pageFault, planFailed, tooOld } from "./failures.js";
import { isEphemeral } from "./plan.js";
import { PageTools } from "./page-tools.js";
import { PlanSource } from "./plan-source.js";
import { Replacement } from "./replacement.js";
import { decide, publicName } from "./session-machine.js";
import { checkOptions } from "./session-options.js";
import { watchOtherTabs } from "./tabs.js";
import { ConnectionFailure, failure } from "./transports/transport.js";
import { TalkReporter } from "./talk-reporter.js";
import { TranscriptRecorder } from "./transcript-recorder.js";
import { MAX_TEXT_BYTES, TypedTexts } from "./typed-texts.js";

/**
 * @typedef {import("./session-options.js").SessionState} SessionState
 * @typedef {import("./session-options.js").VoiceSessionOptions} VoiceSessionOptions
 * @typedef {import("./session-options.js").VoiceSessionEvents} VoiceSessionEvents
 * @typedef {import("./activity.js").Activity} Activity
 * @typedef {import("./plan.js").TransportName} TransportName
 * @typedef {import("./session-machine.js").State} MachineState
 * @typedef {import("./session-machine.js").Action} Action
 * @typedef {import("./session-machine.js").Failure} Failure
 * @typedef {import("./transports/transport.js").Transport} Transport
 *
 * @typedef {object} Talk  What lives as long as a talk, across its connections.
 * @property {AudioEngine} engine
 * @property {AbortController} closing
 * @property {boolean} watchesTabs  whether `watchOtherTabs` was called
 */

/** A shorter press is a slip: what was said within it is dropped. */
const SHORTEST_SPEECH_MS = 200;
/** Azure ends sessions after 60 minutes, some after 30 (docs/azure.md §8.1): the session moves on before. */
const MOVE_AFTER_MS = 27 * 60_000;
/** A data channel takes messages of 256 KiB in every browser, if the other side does; the broker takes 4 MiB of an image. */
const DATA_CHANNEL_IMAGE_BYTES = 150_000;
const AROUND_IMAGE_BYTES = 1_000;
const SOCKET_IMAGE_BYTES = 2_000_000;
/** Without a pause, the session moves on so long after `session_expiring`, which the proxy says a minute before the end. */
const MOVE_BEFORE_END_MS = 45_000;
/** The broker that made the plan has the modules as well; so long it may take to send one. */
const LOADING_MS = 10_000;
/** A socket that was away for longer is not trusted, unless something came over it meanwhile. */
const TRUSTED_AWAY_MS = 5_000;

export class VoiceSession extends EventTarget {
  #options;
  #broker;
  #plans;
  #recorder;
  #texts;
  #tools;
  #activity;
  #replacement;
  /** @type {TalkReporter | null} */
  #reporter = null;
  /** When the user began to speak by `startSpeaking`; null while nobody holds it. @type {number | null} */
  #heldSinceMs = null;
  #prompting = false;
  #volume = 1;
  #microphoneId = "";
  #speakerId = "";
  #muted = false;
  #hearsEvents = false;
  /** When the peer's last event came. */
  #heardAtMs = 0;
  /** @type {number | null} */
  #offlineSinceMs = null;
  /** Since when the user waits for the talk to be live; null once it was. @type {number | null} */
  #wantedAtMs = null;
  /** @type {MachineState} */
  #machine = { name: "idle" };
  /** Whom the talk was live with last. @type {string | undefined} */
  #metAgentId;
  /** @type {Talk | null} */
  #talk = null;
  /** Aborts the current plan request or the opening of a connection. */
  #attempt = new AbortController();
  /** @type {Transport | null} */
  #transport = null;
  /** What the broker tells of the current call. @type {import("./call-events.js").CallEvents | null} */
  #callEvents = null;
  /** @type {TransportName | null} */
  #transportName = null;
  /** Where the last plan's connections lead to: browsers tell of a refused one when the next is tried already. @type {string[]} */
  #planUrls = [];
  /** The timer of the next attempt. @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {string | null} */
  #resource = null;
  /** @type {{promise: Promise<void>, resolve: () => void, reject: (error: Error) => void} | null} */
  #connecting = null;

  /**
   * @param {VoiceSessionOptions} options
   * @throws {TypeError} without a usable `brokerUrl`
   */
  constructor(options) {
    super();
    checkOptions(options);
    this.#options = options;
    this.#broker = new Broker(options.brokerUrl, options);
    this.#plans = new PlanSource(this.#broker, options, ({ code, message }) => this.#report(code, message));
    this.#activity = new ActivityWatch({
      onChange: (activity) => this.#machine.name === "live" && this.#emit("activity", { activity }),
      onAnswered: (turnMs) => this.#answered(turnMs),
    });
    this.#replacement = new Replacement({
      nextPlan: (signal) => this.#nextPlan(signal),
      source: this.#plans,
      connection: () => this.#attempt.signal,
      isQuiet: () => this.#activity.isQuiet,
      onPlan: (plan, reason) => this.#dispatch({ type: "replace", plan, reason }),
      onSwitchFailed: (message) => this.#report("switch_failed", message),
    });
    this.#texts = new TypedTexts({
      send: (event) => this.#transport?.send(event),
      interrupt: () => this.interrupt(),
      whileAnswering: options.whileAnswering ?? "interrupt",
      isLed: () => this.#callEvents?.leads === true,
      onSilent: () => this.#dropped({ code: "azure_dropped", message: "Azure does not answer." }),
      onLost: () => this.#textsLost(),
    });
    this.#tools = new PageTools({
      send: (event) => this.#transport?.send(event),
      onOutputs: () => {
        if (this.#transport?.reportsTurns) this.#texts.want(); // what passes the proxy is asked about there
      },
      onState: (state) => this.#emit("tool", state),
    });
    if (options.report !== false) {
      this.#reporter = new TalkReporter({ post: (report, token) => this.#broker.reportTalk(report, token) });
    }
    this.#recorder = new TranscriptRecorder(this.#broker, {
      onLine: (line) => this.#emit("transcript", line),
      onLost: () => this.#report("turn_lost", "Something that was said could not be kept. The talk goes on."),
    });
  }

  /**
   * @template {keyof VoiceSessionEvents} Name
   * @overload
   * @param {Name} type
   * @param {(event: CustomEvent<VoiceSessionEvents[Name]>) => void} listener
   * @param {boolean | AddEventListenerOptions} [options]
   * @returns {void}
   */
  /**
   * @overload
   * @param {string} type
   * @param {EventListenerOrEventListenerObject | null} listener
   * @param {boolean | AddEventListenerOptions} [options]
   * @returns {void}
   */
  /**
   * @param {string} type
   * @param {any} listener
   * @param {boolean | AddEventListenerOptions} [options]
   */
  addEventListener(type, listener, options) {
    if (type === "event") this.#hearsEvents = true;
    super.addEventListener(type, listener, options);
  }

  /**
   * @template {keyof VoiceSessionEvents} Name
   * @overload
   * @param {Name} type
   * @param {(event: CustomEvent<VoiceSessionEvents[Name]>) => void} listener
   * @param {boolean | EventListenerOptions} [options]
   * @returns {void}
   */
  /**
   * @overload
   * @param {string} type
   * @param {EventListenerOrEventListenerObject | null} listener
   * @param {boolean | EventListenerOptions} [options]
   * @returns {void}
   */
  /**
   * @param {string} type
   * @param {any} listener
   * @param {boolean | EventListenerOptions} [options]
   */
  removeEventListener(type, listener, options) {
    super.removeEventListener(type, listener, options);
  }

  /** @returns {SessionState} */
  get state() {
    return publicName(this.#machine);
  }

  /** What a live talk does; null where none is live. */
  get activity() {
    return this.#machine.name === "live" ? this.#activity.activity : null;
  }

  /** The transport that is used or being tried; null without one. */
  get transport() {
    return this.#transportName;
  }

  /** The name of the Azure resource that the talk uses; null where the broker names none. */
  get resource() {
    return this.#resource;
  }

  /** The session's id, once the broker has assigned it. */
  get sessionId() {
    return this.#plans.sessionId ?? null;
  }

  get agentId() {
    return this.#plans.agentId ?? null;
  }

  get muted() {
    return this.#muted;
  }

  /**
   * Starts a talk: asks for the microphone, then for a plan, and tries its connections. Must be called from a click.
   * @returns {Promise<void>} resolves when the talk is live; rejects with an Error with a `code` where it fails
   */
  connect() {
    if (this.#machine.name === "live") return Promise.resolve();
    if (!this.#connecting) {
      const connecting = withResolvers();
      connecting.promise.catch(ignore); // a page that listens to events alone need not catch it
      this.#connecting = connecting;
      this.#talk ??= this.#beginTalk();
      this.#wantedAtMs = performance.now();
      this.#dispatch({ type: "talk" });
      return connecting.promise;
    }
    return this.#connecting.promise;
  }

  /** Hangs up, and releases the microphone. Resolves when the last turns are acknowledged, or after half a second. */
  async disconnect() {
    this.#dispatch({ type: "hang_up", reason: "hung_up" });
    await this.#recorder.settled();
  }

  /**
   * Sends a typed message, and asks for its answer. An answer that runs is stopped first, or heard to its end where the
   * option `whileAnswering` is `queue`. A text whose answer a lost connection took away is asked about again.
   * @param {string} text at most 60,000 bytes of UTF-8
   * @throws {DOMException} InvalidStateError where the talk is not live
   * @throws {Error} with the code `text_too_long`, or `text_not_taken` where the agent can't read
   */
  sendText(text) {
    if (this.#machine.name !== "live" || !this.#transport) {
      throw new DOMException("The talk is not live.", "InvalidStateError");
    }
    const words = wellFormed(text).trim();
    if (words === "") return;
    if (this.#transport.noText) throw errorWithCode("text_not_taken", "In this call the agent can't read. Say it instead.");
    if (new TextEncoder().encode(JSON.stringify(words)).length > MAX_TEXT_BYTES) {
      throw errorWithCode("text_too_long", "The text is too long. Send at most 60,000 bytes at once.");
    }
    const itemId = `msg_${randomHex(24)}`;
    this.#activity.typed();
    this.#recorder.typed(itemId, words);
    this.#texts.say(itemId, words);
  }

  /** Stops the answer. */
  interrupt() {
    this.#activity.interrupted();
    this.#transport?.interrupt().then((cuts) => this.#recorder.interrupted(cuts), ignore);
  }

  /** @param {boolean} muted */
  setMuted(muted) {
    this.#muted = muted;
    this.#talk?.engine.setMuted(this.#sendsSilence);
  }

  get #sendsSilence() {
    return this.#muted || (this.#options.pushToTalk === true && this.#heldSinceMs === null);
  }

  /** With the option `pushToTalk`: the user begins to speak. An answer that runs is stopped. */
  startSpeaking() {
    if (!this.#options.pushToTalk || this.#machine.name !== "live" || this.#heldSinceMs !== null) return;
    this.#heldSinceMs = performance.now();
    this.interrupt();
    this.#transport?.send({ type: "input_audio_buffer.clear" });
    this.setMuted(this.#muted);
  }

  /** With the option `pushToTalk`: the user has spoken, and wants an answer. */
  stopSpeaking() {
    if (this.#heldSinceMs === null) return;
    const spokenMs = performance.now() - this.#heldSinceMs;
    this.#heldSinceMs = null;
    this.setMuted(this.#muted);
    if (this.#muted || spokenMs < SHORTEST_SPEECH_MS) return this.#transport?.send({ type: "input_audio_buffer.clear" });
    this.#activity.spoken();
    this.#transport?.send({ type: "input_audio_buffer.commit" });
    this.#texts.want();
  }

  /** The devices to choose from. @returns {Promise<import("./audio/audio-engine.js").Devices>} */
  devices() {
    return listDevices();
  }

  /**
   * Chooses the microphone, for this talk and later ones.
   * @param {string} id of `devices()`; empty is the system's
   * @throws {Error} with a code such as `microphone_missing`; the one before stays
   */
  async setMicrophone(id) {
    await this.#talk?.engine.setMicrophone(id);
    this.#microphoneId = id;
  }

  /**
   * Chooses the loudspeaker, for this talk and later ones.
   * @param {string} id of `devices()`; empty is the system's
   * @throws {Error} with the code `speaker_not_selectable` where the browser does not let pages choose, or does not take it
   */
  async setSpeaker(id) {
    if (this.#talk && !this.#talk.engine.audio.choosesSpeaker) throw speakerFault();
    await this.#talk?.engine.audio.setSpeaker(id).catch(() => Promise.reject(speakerFault()));
    this.#speakerId = id;
  }

  /** @param {number} volume of the answer, from 0 to 1 */
  setVolume(volume) {
    this.#volume = Math.max(0, Math.min(1, Number(volume) || 0));
    this.#talk?.engine.audio.setVolume(this.#volume);
  }

  /**
   * Shows the model an image. It asks for no answer: send a text with the question, or ask aloud.
   * @param {Blob} image made smaller where the connection takes no more
   * @throws {DOMException} InvalidStateError where the talk is not live
   * @throws {Error} with the code `image_unreadable`, or `image_not_taken` where the agent can't look at images
   */
  async sendImage(image) {
    const transport = this.#transport;
    if (this.#machine.name !== "live" || !transport) throw new DOMException("The talk is not live.", "InvalidStateError");
    if (transport.noImages) throw errorWithCode("image_not_taken", "This agent can't look at images.");
    const { shrunkImage } = await import("./images.js"); // few talks need it
    const channelBytes = Math.min(DATA_CHANNEL_IMAGE_BYTES, (transport.largestMessageBytes ?? Infinity) - AROUND_IMAGE_BYTES);
    const url = await shrunkImage(image, transport.reportsTurns ? channelBytes : SOCKET_IMAGE_BYTES);
    transport.send(imageEvent(`msg_${randomHex(24)}`, url));
  }

  /**
   * Does in the page what the model asks for by this name.
   * @param {string} name of a tool that the agent has with `run = "client"`
   * @param {import("./page-tools.js").ToolHandler | null} handler null forgets it
   */
  tool(name, handler) {
    this.#tools.set(name, handler);
    if (this.#machine.name === "live" && this.#tools.hasTools) this.#transport?.listenForCalls?.();
  }

  /**
   * Answers an `approval` event.
   * @param {string} id the event's
   * @param {boolean} yes
   */
  approve(id, yes) {
    this.#transport?.send(approvalEvent(id, yes));
  }

  /**
   * Switches to another agent in the same session. An `error` says where that fails; the talk goes on with the one before.
   * @param {string} agentId
   */
  switchAgent(agentId) {
    if (agentId === (this.#plans.wantedAgentId ?? this.#plans.agentId)) return;
    if (!this.#talk) {
      this.#plans.agentId = agentId;
    } else if (this.#machine.name !== "live") {
      this.#plans.wantedAgentId = agentId;
      this.#dispatch({ type: "move", reason: "agent_switched" });
    } else if (this.#transport?.switchesAgents) {
      this.#transport.send({ type: "broker.agent.switch", agent_id: agentId }); // `broker.agent.switched` confirms it
    } else {
      this.#plans.wantedAgentId = agentId;
      void this.#replacement.switchAgent();
    }
  }

  // --- the state machine

  /** @param {import("./session-machine.js").Event} event */
  #dispatch(event) {
    const before = this.state;
    const online = globalThis.navigator?.onLine !== false;
    const moment = { nowMs: performance.now(), random: Math.random(), online };
    const { state, actions } = decide(this.#machine, event, moment);
    this.#machine = state;
    for (const action of actions) this.#perform(action);
    if (this.state !== before) this.#emitState();
    if (state.name === "failed") this.#endTalk(state.code, errorWithCode(state.code, state.message));
    if (state.name === "ended") this.#endTalk(state.reason, errorWithCode("ended", "The talk ended before it was live."));
  }

  /** @param {Action} action */
  #perform(action) {
    switch (action.do) {
      case "request_plan":
        void this.#requestPlan(this.#newAttempt());
        break;
      case "open":
        this.#closeConnection();
        void this.#open(action.connection, this.#newAttempt());
        break;
      case "close":
        this.#closeConnection();
        break;
      case "wait":
        this.#timer = setTimeout(() => this.#dispatch({ type: "wake" }), action.delayMs);
        break;
      case "report":
        this.#report(action.code, action.message, action.retryable, action.retryAfterMs);
    }
  }

  #newAttempt() {
    clearTimeout(this.#timer);
    this.#attempt.abort();
    this.#attempt = new AbortController();
    return this.#attempt.signal;
  }

  /** @param {AbortSignal} signal */
  async #requestPlan(signal) {
    const engine = this.#talk?.engine;
    if (!engine) return;
    const fault = tooOld();
    if (fault) return this.#dispatch({ type: "plan_failed", failure: fault });
    try {
      await this.#broker.signIn(signal); // first of all: a prompt takes longer than a click counts
      // A plan expires, and a prompt is a person's time: where one will be shown, the plan is asked for after it.
      const isPermitted = await engine.isPermitted();
      signal.throwIfAborted();
      if (!isPermitted && !engine.isOpen) {
        this.#prompting = true;
        this.#emitState();
        await engine.open().finally(() => (this.#prompting = false));
        if (!signal.aborted) this.#emitState();
        if (this.#wantedAtMs !== null) this.#wantedAtMs = performance.now(); // a person's time does not count
      }
      signal.throwIfAborted();
      const [plan] = await Promise.all([this.#nextPlan(signal), engine.open()]);
      signal.throwIfAborted();
      this.#dispatch({ type: "plan", plan });
    } catch (error) {
      if (!signal.aborted) this.#dispatch(planFailed(error));
    }
  }

  /** @param {AbortSignal} signal */
  async #nextPlan(signal) {
    await this.#recorder.settled(); // the broker puts the turns into the next connection's instructions
    signal.throwIfAborted();
    const plan = await this.#plans.next(signal);
    this.#planUrls = plan.connections.map(({ url }) => url);
    loadTransports().then(({ loadFor }) => loadFor(plan.connections)).catch(ignore); // `#open` tells of it
    this.#reporter?.about(plan.sessionId, plan.sessionToken);
    return plan;
  }

  /**
   * @param {import("./plan.js").Connection} connection
   * @param {AbortSignal} signal
   */
  async #open(connection, signal) {
    const talk = this.#talk;
    if (!talk) return; // hung up meanwhile
    this.#resource = connection.resource;
    this.#announce(connection.transport, "progress" in this.#machine ? this.#machine.progress.reason : "");
    /** @type {Transport | null} */
    let transport = null;
    const making = transportFor({
      connection,
      audio: talk.engine.audio,
      request: (url, init) => this.#broker.request(url, init),
      onSignal: (signal) => this.#handle(signal),
      onEvent: (event) => {
        this.#heardAtMs = performance.now();
        if (this.#hearsEvents) this.#emit("event", event);
      },
      onDropped: (reason) => this.#dropped(reason),
    });
    try {
      transport = await within(making, LOADING_MS, signal);
      this.#transport = transport;
      await talk.engine.audio.resume();
      if (!isEphemeral(connection)) throw this.#notEphemeral();
      await transport.open(signal);
      signal.throwIfAborted();
    } catch (error) {
      if (transport) transport.close();
      else making.then((late) => late.close(), ignore);
      if (signal.aborted) return;
      this.#reporter?.failed(connection.transport, error instanceof ConnectionFailure ? error.failure.code : "other");
      this.#dispatch({ type: "failed", failure: error instanceof ConnectionFailure ? error.failure : pageFault(error) });
      return;
    }
    if (!talk.engine.audio.hasWorklets && connection.transport.startsWith("websocket")) {
      this.#report("sound_unavailable", "This browser gives the page no sound now. You can type, and read the answers.");
    }
    const moveAfterMs = this.#options.moveAfterMs ?? (connection.transport === "websocket_proxy" ? null : MOVE_AFTER_MS);
    if (!connection.transport.startsWith("websocket")) talk.engine.audio.takeWords(); // nobody gets them
    if (moveAfterMs !== null) this.#replacement.dueAfter(moveAfterMs);
    const { sessionId = "", sessionToken, agentId = "" } = this.#plans;
    this.#recorder.begin({
      ...{ sessionId, sessionToken, agentId },
      reports: transport.reportsTurns || transport.repeatsTurns === true,
    });
    if (transport.call) void this.#followCall(transport.call).catch(ignore); // the talk goes on without
    const liveAfterMs = this.#wantedAtMs === null ? null : performance.now() - this.#wantedAtMs;
    this.#wantedAtMs = null;
    this.#reporter?.begin(connection.transport, liveAfterMs, transport.statistics && (() => transport.statistics?.() ?? Promise.resolve(null)));
    this.#dispatch({ type: "opened" });
    this.#meetAgent();
    if (this.#options.pushToTalk) transport.send(pushToTalkEvent(connection.dialect));
    if (!transport.noText) this.#texts.reconnected();
    else if (this.#texts.end().length > 0) this.#textsLost();
    if (this.#tools.hasTools) transport.listenForCalls?.();
    this.#connecting?.resolve();
    this.#connecting = null;
    this.#lookForOtherTabs(talk);
  }

  /** @param {import("./call-events.js").CallName} call */
  async #followCall(call) {
    this.#callEvents?.close();
    const { signal } = this.#attempt; // aborted when the connection closes
    const { CallEvents } = await import("./call-events.js"); // while the talk is live already
    if (signal.aborted) return;
    this.#callEvents = new CallEvents({
      request: (path, init) => this.#broker.request(this.#options.brokerUrl.replace(/\/+$/, "") + path, init),
      sessionId: this.#plans.sessionId ?? "",
      sessionToken: this.#plans.sessionToken,
      onSignal: (signal) => this.#handle(signal),
      onEvent: (event) => {
        if (this.#hearsEvents) this.#emit("event", event);
      },
      onLead: (leads) => {
        if (!leads) this.#texts.alone();
      },
    });
    await this.#callEvents.follow(call);
  }

  /** @param {Talk} talk */
  #lookForOtherTabs(talk) {
    if (talk.watchesTabs) return;
    talk.watchesTabs = true;
    const message = "Another tab of this site is talking too, and both hear each other. Hang up in one of them.";
    watchOtherTabs(() => this.#report("other_tab", message), talk.closing.signal);
  }

  #notEphemeral() {
    const message = "The voice service handed out a key that must not be in a page. It was not used.";
    this.#report("token_not_ephemeral", message);
    return failure("token_not_ephemeral", message);
  }

  /** @param {Failure} reason */
  #dropped(reason) {
    if (this.#transportName) this.#reporter?.failed(this.#transportName, reason.code);
    if (!reason.fatal) this.#report(reason.code, `${reason.message} Reconnecting.`);
    this.#dispatch({ type: "dropped", failure: reason });
  }

  #closeConnection() {
    clearTimeout(this.#timer);
    this.#attempt.abort();
    this.#callEvents?.close();
    this.#callEvents = null;
    void this.#reporter?.end();
    this.#transport?.close();
    this.#transport = null;
    this.#recorder.end();
    this.#tools.end();
    this.#replacement.end();
    this.#activity.reset();
    if (this.#heldSinceMs !== null) {
      this.#heldSinceMs = null; // the button has to be pressed again
      this.setMuted(this.#muted);
    }
    if (this.#options.microphone !== false) this.#talk?.engine.audio.keepWords();
  }

  // --- the talk's beginning and end

  #beginTalk() {
    loadTransports().catch(ignore); // while the broker makes the plan
    const closing = new AbortController();
    const { signal } = closing;
    const engine = new AudioEngine(
      {
        onLevels: (levels) => this.#emit("level", levels),
        onWarning: (code, message) => this.#report(code, message),
        onUnheard: (isUnheard) => this.#activity.setUnheard(isUnheard),
        onNewMicrophone: (track) => void this.#transport?.replaceMicrophone(track).catch(ignore),
      },
      { muted: this.#sendsSilence, microphone: this.#options.microphone !== false },
    );
    if (this.#volume !== 1) engine.audio.setVolume(this.#volume);
    if (this.#microphoneId) void engine.setMicrophone(this.#microphoneId);
    if (this.#speakerId && engine.audio.choosesSpeaker) {
      engine.audio.setSpeaker(this.#speakerId).catch(() => this.#report("speaker_lost", "The chosen loudspeaker is gone. You hear the answer on the system's."));
    }
    addEventListener("pagehide", () => this.#pageHides(), { signal });
    addEventListener("online", () => this.#backOnline(), { signal });
    addEventListener("offline", () => this.#goneOffline(), { signal });
    globalThis.document?.addEventListener("securitypolicyviolation", (violation) => this.#refusedByPolicy(violation), { signal });
    return { engine, closing, watchesTabs: false };
  }

  /**
   * The page's Content-Security-Policy refuses something; what concerns the talk is told, with the directive in its code.
   * @param {SecurityPolicyViolationEvent} violation
   */
  #refusedByPolicy({ effectiveDirective, blockedURI }) {
    const known = [this.#options.brokerUrl, import.meta.url, ...this.#planUrls];
    if (!known.some((url) => hostOf(url) !== "" && hostOf(url) === hostOf(blockedURI))) return;
    const code = `csp_${effectiveDirective.replaceAll("-", "_")}`;
    this.#report(code, `This page's policy keeps the talk from ${hostOf(blockedURI)}: its developer can add that to ${effectiveDirective}.`);
  }

  #goneOffline() {
    this.#offlineSinceMs ??= performance.now();
    this.#report("offline", "You are offline. The talk goes on by itself when the network is back.");
  }

  /** Browsers keep a socket whose network has gone, and tell of its end minutes later: it is not waited for. */
  #backOnline() {
    const sinceMs = this.#offlineSinceMs;
    this.#offlineSinceMs = null;
    this.#dispatch({ type: "wake" });
    const isDoubtful = sinceMs !== null && performance.now() - sinceMs > TRUSTED_AWAY_MS && this.#heardAtMs < sinceMs;
    if (!isDoubtful || this.#machine.name !== "live" || !this.#transportName?.includes("websocket")) return;
    this.#dropped({ code: "network_lost", message: "The network was away." });
  }

  #pageHides() {
    this.#recorder.flushOnClose();
    this.#reporter?.flushOnClose();
    this.#dispatch({ type: "hang_up", reason: "page_closed" });
  }

  /**
   * @param {string} reason
   * @param {Error} error rejects a `connect` that is still pending
   */
  #endTalk(reason, error) {
    this.#connecting?.reject(error);
    this.#connecting = null;
    if (!this.#talk) return;
    void this.#reporter?.end({ isLast: true });
    this.#plans.wantedAgentId = this.#metAgentId = undefined;
    this.#offlineSinceMs = null;
    if (this.#texts.end().length > 0 && reason !== "hung_up" && reason !== "page_closed") this.#textsLost();
    this.#talk.closing.abort();
    void this.#talk.engine.close().catch(ignore);
    this.#talk = null;
    this.#resource = null;
    this.#announce(null, reason);
    this.#emit("level", { input: 0, output: 0 });
  }

  // --- signals

  /** @param {import("./events.js").Signal} signal */
  #handle(signal) {
    if (this.#texts.handle(signal)) return;
    this.#tools.handle(signal);
    switch (signal.kind) {
      case "tool":
        return this.#emit("tool", { name: signal.name, callId: signal.callId, state: signal.state, durationMs: signal.durationMs });
      case "approval":
        return this.#emit("approval", { id: signal.id, name: signal.name, args: signal.args, server: signal.server });
      case "latency":
        return this.#emit("latency", { turnMs: signal.turnMs, from: signal.from });
      case "speech_started":
        this.#transport?.yieldToUser().then((cuts) => this.#recorder.interrupted(cuts), ignore);
        break;
      case "switch_agent":
        return this.switchAgent(signal.agentId);
      case "agent_switched":
        this.#plans.agentId = signal.agentId;
        this.#meetAgent();
        break;
      case "ready":
        this.#resource = signal.resource ?? this.#resource;
        break;
      case "resuming":
        this.#replacement.isHeld = true;
        this.#emit("resuming", { reason: signal.reason, retryAfterMs: signal.retryAfterMs });
        break;
      case "resumed":
        this.#resumed(signal);
        break;
      case "error":
        if (signal.code === "not_verified") return this.#dropped({ code: "not_verified", message: signal.message });
        if (signal.code === "session_expiring") this.#replacement.due(MOVE_BEFORE_END_MS);
        else this.#report(signal.code, signal.message);
        break;
      case "session_expired":
        return this.#dispatch({ type: "move", reason: "session_limit" });
    }
    this.#activity.handle(signal);
    this.#recorder.handle(signal);
    if (signal.kind === "playback_stopped") this.#replacement.pause();
  }

  /** @param {number} turnMs how long the user waited for the answer's first sound. What the broker measures is not counted twice */
  #answered(turnMs) {
    if (this.#transport?.switchesAgents || this.#transport?.isMeasured) return;
    this.#reporter?.turn(turnMs);
    this.#emit("latency", { turnMs, from: this.#options.pushToTalk ? "commit" : "speech_stopped" });
  }

  /** @param {Extract<import("./events.js").Signal, {kind: "resumed"}>} signal */
  #resumed({ resource, upstream, dialect }) {
    this.#replacement.isHeld = false;
    this.#resource = resource ?? this.#resource;
    this.#emit("resumed", { resource: this.#resource, upstream, dialect });
    this.#replacement.pause();
  }

  /** The talk is live with its agent: tells where that is another than before. */
  #meetAgent() {
    const { agentId } = this.#plans;
    const before = this.#metAgentId;
    this.#metAgentId = agentId;
    if (agentId && before && agentId !== before) this.#emit("agent", { agentId, before });
  }

  #textsLost() {
    this.#report("text_lost", "What you typed last was not answered.");
  }

  // --- events for the page

  #emitState() {
    this.#emit("state", { state: this.state, prompting: this.#prompting });
  }

  /**
   * @param {TransportName | null} transport
   * @param {string} reason
   */
  #announce(transport, reason) {
    this.#transportName = transport;
    this.#emit("transport", { transport, reason, resource: this.#resource });
  }

  /**
   * @param {string} code
   * @param {string} message
   * @param {boolean} [retryable]
   * @param {number} [retryAfterMs]
   */
  #report(code, message, retryable = true, retryAfterMs) {
    this.#emit("error", retryAfterMs === undefined ? { code, message, retryable } : { code, message, retryable, retryAfterMs });
  }

  /**
   * @template {keyof VoiceSessionEvents} Name
   * @param {Name} name
   * @param {VoiceSessionEvents[Name]} detail
   */
  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** The transports, which no page needs before its first talk. */
function loadTransports() {
  return import("./transports/all-transports.js");
}

/** @param {import("./transports/transport.js").TransportContext} context */
async function transportFor(context) {
  return (await loadTransports()).transportFor(context);
}

/** @param {string} url */
function hostOf(url) {
  return URL.canParse(url, globalThis.location?.href) ? new URL(url, globalThis.location?.href).host : "";
}

function speakerFault() {
  return errorWithCode("speaker_not_selectable", "This browser plays on the system's loudspeaker alone. Choose it in the system's settings.");
}

/**
 * Without halves of characters, which JSON's readers refuse.
 * @param {string} text
 */
function wellFormed(text) {
  return text.replace(/[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g, "\uFFFD");
}

/** @param {number} digits even. Insecure pages have no `crypto.randomUUID`. */
function randomHex(digits) {
  const bytes = crypto.getRandomValues(new Uint8Array(digits / 2));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function withResolvers() {
  let resolve = () => {};
  let reject = (/** @type {Error} */ _error) => {};
  const promise = new Promise((/** @type {(value: void) => void} */ yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** Handles failures that only mean that the talk is over. */
function ignore() {}
