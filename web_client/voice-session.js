/**
 * A voice talk from a page, by whatever way works: this module's one class is what pages use.
 *
 *     const session = new VoiceSession({ brokerUrl: "https://voice.example.com", agentId: "elena" });
 *     session.addEventListener("transcript", ({ detail }) => console.log(detail.speaker, detail.text));
 *     button.onclick = () => session.connect();
 *
 * `session-machine.js` decides what comes next; this class performs it.
 */

import { AudioEngine, listDevices } from "./audio/audio-engine.js";
import { Broker, BrokerError } from "./broker.js";
import { approvalEvent, imageEvent, pushToTalkEvent } from "./events.js";
import { errorWithCode, pageFault, planFailed, tooOld } from "./failures.js";
import { isDegraded, isEphemeral, readPlan } from "./plan.js";
import { PageTools } from "./page-tools.js";
import { decide, publicName } from "./session-machine.js";
import { watchOtherTabs } from "./tabs.js";
import { ConnectionFailure, failure } from "./transports/transport.js";
import { MAX_TEXT_BYTES, TypedTexts } from "./typed-texts.js";
import { TalkReporter } from "./talk-reporter.js";
import { TranscriptRecorder } from "./transcript-recorder.js";

/**
 * @typedef {"idle" | "requesting" | "connecting" | "live" | "reconnecting" | "ended" | "failed"} SessionState
 * @typedef {"listening" | "thinking" | "speaking"} Activity
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
 *
 * @typedef {object} TalkOptions
 * @property {string} brokerUrl  where the broker is, such as `https://voice.example.com`
 * @property {string} [agentId]  the broker's default agent without it
 * @property {string} [sessionId]  16 to 64 of `A-Za-z0-9_-`; the broker makes one without it
 * @property {string} [userId]
 * @property {TransportName[]} [transports]  the only ones to use; all by default
 * @property {number} [moveAfterMs]  after so long, a new connection replaces the current one at the next pause; by default
 *   27 minutes, and never for a talk through the broker's proxy, which moves it by itself
 * @property {boolean} [microphone]  false: the talk is typed and heard, and no microphone is asked for
 * @property {boolean} [pushToTalk]  true: the microphone is sent between `startSpeaking` and `stopSpeaking` alone
 * @property {boolean} [report]  false: what the page measures of the talk is not reported to the broker's metrics
 * @property {"interrupt" | "queue"} [whileAnswering]  what a typed text does to the answer that runs; `interrupt` by default
 *
 * @typedef {TalkOptions & import("./broker.js").BrokerOptions} VoiceSessionOptions
 *
 * @typedef {object} VoiceSessionEvents  The `detail` of each event.
 * @property {{state: SessionState, prompting: boolean}} state  `prompting`: the browser asks the user for the microphone
 * @property {{activity: Activity}} activity  what a live talk does: `listening`, `thinking` or `speaking`
 * @property {{transport: TransportName | null, reason: string, resource: string | null}} transport
 *   the current transport, why no better one is used, and the Azure resource that it leads to
 * @property {{reason: string, retryAfterMs: number | null}} resuming
 *   the broker connects the talk to Azure again: `lost`, `silent`, `expiring`, `quota` or `refused`. The talk stays live
 * @property {{resource: string | null, upstream: string | null, dialect: string | null}} resumed  the talk goes on there
 * @property {import("./conversation.js").Line} transcript  a later one with the same `turnId` replaces it
 * @property {{input: number, output: number}} level  each from 0 to 1, 20 times a second
 * @property {import("./page-tools.js").ToolState} tool  a tool runs, in the page or at the broker
 * @property {{id: string, name: string, args: string, server: string}} approval
 *   an MCP server's tool waits for `approve(id, yes)`, for a minute at most
 * @property {{turnMs: number, from: string}} latency  from the end of the user's speech to the answer's first sound
 * @property {object} event  every event that the peer sends, as it came
 * @property {{code: string, message: string, retryable: boolean, retryAfterMs?: number}} error
 *   `message` says what happened and what to do. Not retryable: the session has given up. `retryAfterMs`: it asks again then.
 */

const OPTIONS = [
  ...["brokerUrl", "agentId", "sessionId", "userId", "transports", "moveAfterMs", "microphone", "pushToTalk", "whileAnswering", "report"],
  ...["getToken", "headers", "credentials", "fetch", "getPlan"],
];

/** A shorter press is a slip: what was said within it is dropped. */
const SHORTEST_SPEECH_MS = 200;
/** Azure ends sessions after 60 minutes, some after 30 (docs/azure.md §8.1): the session moves on before. */
const MOVE_AFTER_MS = 27 * 60_000;
/** A data channel takes messages of 256 KiB in every browser; the broker takes 4 MiB of an image. */
const DATA_CHANNEL_IMAGE_BYTES = 150_000;
const SOCKET_IMAGE_BYTES = 2_000_000;
/** Without a pause, the session moves on after so long. */
const MOVE_AT_LATEST_MS = 90_000;
/** The same after `session_expiring`, which the proxy says a minute before the end. */
const MOVE_BEFORE_END_MS = 45_000;
/** After so long a move is tried again that found no usable plan. */
const MOVE_AGAIN_MS = 60_000;

export class VoiceSession extends EventTarget {
  #options;
  #broker;
  #recorder;
  #texts;
  #tools;
  /** When the user began to speak by `startSpeaking`; null while nobody holds it. @type {number | null} */
  #heldSinceMs = null;
  #prompting = false;
  /** @type {Activity} */
  #activity = "listening";
  #volume = 1;
  #microphoneId = "";
  #speakerId = "";
  #hearsEvents = false;
  /** When the user stopped speaking, and no sound of an answer has come since. @type {number | null} */
  #stoppedAtMs = null;
  /** The answer that began last, and the one that the user spoke over: its sound may begin late. */
  #answer = { latest: "", stale: "" };
  /** Since when the user waits for the talk to be live; null once it was. @type {number | null} */
  #wantedAtMs = null;
  /** @type {TalkReporter | null} */
  #reporter = null;
  /** @type {MachineState} */
  #machine = { name: "idle" };
  /** @type {string | undefined} */
  #agentId;
  /** An agent that the next plan is asked for, and that the broker may not know. @type {string | undefined} */
  #wantedAgentId;
  /** @type {string | undefined} */
  #sessionId;
  #sessionToken = "";
  #muted = false;
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
  /** The timer of the next attempt, or of the move to a new connection. @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {"no" | "at the next pause"} */
  #moving = "no";
  #quiet = true;
  /** A plan is being requested that will replace the current connection. */
  #replacing = false;
  /** The proxy is connecting the talk to Azure again. */
  #resuming = false;
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
    if (typeof options?.brokerUrl !== "string" || !isAddress(options.brokerUrl)) {
      throw new TypeError('VoiceSession: brokerUrl is needed: the broker\'s address, such as "https://voice.example.com".');
    }
    const unknown = Object.keys(options).filter((name) => !OPTIONS.includes(name));
    if (unknown.length > 0) console.warn(`VoiceSession: there is no option ${unknown.join(", ")}; there are ${OPTIONS.join(", ")}.`);
    this.#options = options;
    this.#agentId = options.agentId;
    this.#sessionId = options.sessionId;
    this.#broker = new Broker(options.brokerUrl, options);
    this.#texts = new TypedTexts({
      send: (event) => this.#transport?.send(event),
      interrupt: () => this.interrupt(),
      whileAnswering: options.whileAnswering ?? "interrupt",
      isLed: () => this.#callEvents?.leads === true,
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
    return this.#machine.name === "live" ? this.#activity : null;
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
    return this.#sessionId ?? null;
  }

  get agentId() {
    return this.#agentId ?? null;
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
   * @throws {Error} with the code `text_too_long`
   */
  sendText(text) {
    if (this.#machine.name !== "live" || !this.#transport) {
      throw new DOMException("The talk is not live.", "InvalidStateError");
    }
    const words = wellFormed(text).trim();
    if (words === "") return;
    if (new TextEncoder().encode(JSON.stringify(words)).length > MAX_TEXT_BYTES) {
      throw errorWithCode("text_too_long", "The text is too long. Send at most 60,000 bytes at once.");
    }
    const itemId = `msg_${randomHex(24)}`;
    this.#does("thinking");
    this.#recorder.typed(itemId, words);
    this.#texts.say(itemId, words);
  }

  /** Stops the answer. */
  interrupt() {
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
    this.#stoppedAtMs = performance.now();
    this.#does("thinking");
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
   * @throws {Error} with the code `image_unreadable`
   */
  async sendImage(image) {
    const transport = this.#transport;
    if (this.#machine.name !== "live" || !transport) throw new DOMException("The talk is not live.", "InvalidStateError");
    const { shrunkImage } = await import("./images.js"); // few talks need it
    const url = await shrunkImage(image, transport.reportsTurns ? DATA_CHANNEL_IMAGE_BYTES : SOCKET_IMAGE_BYTES);
    transport.send(imageEvent(`msg_${randomHex(24)}`, url));
  }

  /**
   * Does in the page what the model asks for by this name.
   * @param {string} name of a tool that the agent has with `run = "client"`
   * @param {import("./page-tools.js").ToolHandler | null} handler null forgets it
   */
  tool(name, handler) {
    this.#tools.set(name, handler);
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
    if (agentId === (this.#wantedAgentId ?? this.#agentId)) return;
    if (!this.#talk) {
      this.#agentId = agentId;
    } else if (this.#machine.name !== "live") {
      this.#wantedAgentId = agentId;
      this.#dispatch({ type: "move", reason: "agent_switched" });
    } else if (this.#transport?.switchesAgents) {
      this.#transport.send({ type: "broker.agent.switch", agent_id: agentId }); // `broker.agent.switched` confirms it
    } else {
      this.#wantedAgentId = agentId;
      void this.#replaceForAgent();
    }
  }

  /** The current connection is used until there is a plan for the other agent. */
  async #replaceForAgent() {
    if (this.#replacing) return; // that plan is asked for again below, with this agent
    this.#replacing = true;
    const { signal } = this.#attempt; // aborted when the current connection closes
    try {
      let plan;
      let asked;
      do {
        asked = this.#wantedAgentId;
        plan = await this.#nextPlan(signal);
      } while (this.#wantedAgentId !== undefined && this.#wantedAgentId !== asked);
      if (plan.agentId !== asked) return; // the broker does not know it: that is told already
      if (plan.outlook === "poor") this.#report("switch_failed", "The other agent can't be reached now. Try again in a moment.");
      else this.#dispatch({ type: "replace", plan, reason: "agent_switched" });
    } catch (error) {
      if (signal.aborted) return;
      this.#wantedAgentId = undefined;
      const message = error instanceof BrokerError ? error.message : "The other agent can't be reached now. Try again in a moment.";
      this.#report("switch_failed", message);
    } finally {
      this.#replacing = false;
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
    const request = {
      agentId: this.#wantedAgentId ?? this.#agentId,
      sessionId: this.#sessionId,
      sessionToken: this.#sessionToken,
      userId: this.#options.userId,
    };
    let body;
    try {
      body = await this.#broker.requestPlan(request, signal);
    } catch (error) {
      const isUnknown = error instanceof BrokerError && error.code === "unknown_agent";
      if (!isUnknown || this.#wantedAgentId === undefined || !this.#sessionToken) throw error;
      this.#report(error.code, error.message);
      this.#wantedAgentId = undefined;
      body = await this.#broker.requestPlan({ ...request, agentId: this.#agentId }, signal);
    }
    const plan = readPlan(body, performance.now(), this.#options.transports);
    if (!plan) {
      const message = "The voice service offers no way to connect that this page can use.";
      throw new BrokerError("no_way", message, { retryable: isDegraded(body) });
    }
    this.#sessionId = plan.sessionId;
    this.#sessionToken = plan.sessionToken;
    this.#reporter?.about(plan.sessionId, plan.sessionToken);
    this.#agentId = plan.agentId || request.agentId;
    if (this.#wantedAgentId === this.#agentId) this.#wantedAgentId = undefined;
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
    try {
      const { transportFor } = await loadTransports();
      signal.throwIfAborted();
      transport = transportFor({
        connection,
        audio: talk.engine.audio,
        request: (url, init) => this.#broker.request(url, init),
        onSignal: (signal) => this.#handle(signal),
        onEvent: (event) => {
          if (this.#hearsEvents) this.#emit("event", event);
        },
        onDropped: (reason) => this.#dropped(reason),
      });
      this.#transport = transport;
      await talk.engine.audio.resume();
      if (!isEphemeral(connection)) throw this.#notEphemeral();
      await transport.open(signal);
      signal.throwIfAborted();
    } catch (error) {
      transport?.close();
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
    if (moveAfterMs !== null) this.#timer = setTimeout(() => this.#timeToMove(), moveAfterMs);
    this.#recorder.begin({
      sessionId: this.#sessionId ?? "",
      sessionToken: this.#sessionToken,
      agentId: this.#agentId ?? "",
      reports: transport.reportsTurns,
    });
    if (transport.call) void this.#followCall(transport.call).catch(ignore); // the talk goes on without
    const liveAfterMs = this.#wantedAtMs === null ? null : performance.now() - this.#wantedAtMs;
    this.#wantedAtMs = null;
    this.#reporter?.begin(connection.transport, liveAfterMs, transport.statistics && (() => transport.statistics?.() ?? Promise.resolve(null)));
    this.#dispatch({ type: "opened" });
    if (this.#options.pushToTalk) transport.send(pushToTalkEvent(connection.dialect));
    this.#texts.reconnected();
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
      sessionId: this.#sessionId ?? "",
      sessionToken: this.#sessionToken,
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
    this.#stoppedAtMs = null;
    if (this.#heldSinceMs !== null) {
      this.#heldSinceMs = null; // the button has to be pressed again
      this.setMuted(this.#muted);
    }
    if (this.#options.microphone !== false) this.#talk?.engine.audio.keepWords();
    this.#activity = "listening";
    this.#moving = "no";
    this.#quiet = true;
    this.#resuming = false;
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
    addEventListener("online", () => this.#dispatch({ type: "wake" }), { signal });
    const offline = "You are offline. The talk goes on by itself when the network is back.";
    addEventListener("offline", () => this.#report("offline", offline), { signal });
    globalThis.document?.addEventListener("securitypolicyviolation", (violation) => this.#refusedByPolicy(violation), { signal });
    return { engine, closing, watchesTabs: false };
  }

  /**
   * The page's Content-Security-Policy refuses something; what concerns the talk is told, with the directive in its code.
   * @param {SecurityPolicyViolationEvent} violation
   */
  #refusedByPolicy({ effectiveDirective, blockedURI }) {
    const known = [this.#options.brokerUrl, import.meta.url, this.#connectionUrl];
    if (!known.some((url) => hostOf(url) !== "" && hostOf(url) === hostOf(blockedURI))) return;
    const code = `csp_${effectiveDirective.replaceAll("-", "_")}`;
    this.#report(code, `This page's policy keeps the talk from ${hostOf(blockedURI)}: its developer can add that to ${effectiveDirective}.`);
  }

  get #connectionUrl() {
    const machine = this.#machine;
    return "plan" in machine ? (machine.plan.connections[machine.index]?.url ?? "") : "";
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
    this.#wantedAgentId = undefined;
    if (this.#texts.end().length > 0 && reason !== "hung_up" && reason !== "page_closed") {
      this.#report("text_lost", "What you typed last was not answered.");
    }
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
      case "speech_stopped":
        this.#stoppedAtMs = performance.now();
        this.#does("thinking");
        break;
      case "speech_started":
        this.#does("listening");
        this.#quiet = false;
        this.#stoppedAtMs = null;
        this.#answer.stale = this.#answer.latest;
        this.#transport?.yieldToUser().then((cuts) => this.#recorder.interrupted(cuts), ignore);
        break;
      case "response_started":
        this.#answer.latest = signal.responseId;
        this.#quiet = false;
        if (this.#activity !== "speaking") this.#does("thinking");
        break;
      case "playback_stopped":
        this.#does("listening");
        break;
      case "playback_started":
        this.#does("speaking");
        this.#quiet = false;
        if (!signal.responseId || signal.responseId !== this.#answer.stale) this.#measure();
        break;
      case "response_done":
        if (signal.status !== "completed") this.#stoppedAtMs = null; // no answer to measure
        if (this.#activity === "thinking") this.#does("listening"); // a text, or a call of a tool
        break;
      case "switch_agent":
        return this.switchAgent(signal.agentId);
      case "agent_switched":
        this.#agentId = signal.agentId;
        break;
      case "ready":
        this.#resource = signal.resource ?? this.#resource;
        break;
      case "resuming":
        this.#resuming = true;
        this.#emit("resuming", { reason: signal.reason, retryAfterMs: signal.retryAfterMs });
        break;
      case "resumed":
        this.#resumed(signal);
        break;
      case "error":
        if (signal.code === "not_verified") return this.#dropped({ code: "not_verified", message: signal.message });
        if (signal.code === "session_expiring") this.#timeToMove(MOVE_BEFORE_END_MS);
        else this.#report(signal.code, signal.message);
        break;
      case "session_expired":
        return this.#dispatch({ type: "move", reason: "session_limit" });
    }
    this.#recorder.handle(signal);
    if (signal.kind === "playback_stopped") {
      this.#quiet = true;
      if (this.#moving !== "no") void this.#move();
    }
  }

  /** The answer's first sound: tells how long the user waited for it. The proxy measures by itself. */
  #measure() {
    if (this.#stoppedAtMs === null || this.#transport?.switchesAgents) return;
    const turnMs = Math.round(performance.now() - this.#stoppedAtMs);
    this.#stoppedAtMs = null;
    this.#reporter?.turn(turnMs);
    this.#emit("latency", { turnMs, from: this.#options.pushToTalk ? "commit" : "speech_stopped" });
  }

  /** @param {Extract<import("./events.js").Signal, {kind: "resumed"}>} signal */
  #resumed({ resource, upstream, dialect }) {
    this.#resuming = false;
    this.#resource = resource ?? this.#resource;
    this.#emit("resumed", { resource: this.#resource, upstream, dialect });
    if (this.#moving !== "no" && this.#quiet) void this.#move();
  }

  /**
   * Azure's limit is near: moves at the next pause, or after `latestMs`.
   * @param {number} [latestMs]
   */
  #timeToMove(latestMs = MOVE_AT_LATEST_MS) {
    clearTimeout(this.#timer);
    this.#moving = "at the next pause";
    if (this.#quiet) return void this.#move();
    this.#timer = setTimeout(() => void this.#move(), latestMs);
  }

  /** Moves to a new plan. The current connection is used until the plan is there, and longer where it is not usable. */
  async #move() {
    if (this.#replacing || this.#resuming) return; // `resumed` moves, or the proxy closes the socket
    this.#replacing = true;
    const { signal } = this.#attempt; // aborted when the current connection closes
    const plan = await this.#nextPlan(signal).catch(() => null);
    this.#replacing = false;
    if (signal.aborted) return;
    if (plan && plan.outlook !== "poor") return this.#dispatch({ type: "replace", plan, reason: "session_limit" });
    clearTimeout(this.#timer);
    this.#moving = "no";
    this.#timer = setTimeout(() => this.#timeToMove(), MOVE_AGAIN_MS);
  }

  // --- events for the page

  #emitState() {
    this.#emit("state", { state: this.state, prompting: this.#prompting });
  }

  /** @param {Activity} activity */
  #does(activity) {
    if (activity === this.#activity) return;
    this.#activity = activity;
    if (this.#machine.name === "live") this.#emit("activity", { activity });
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

/** @param {string} url */
function hostOf(url) {
  return URL.canParse(url, globalThis.location?.href) ? new URL(url, globalThis.location?.href).host : "";
}

function speakerFault() {
  return errorWithCode("speaker_not_selectable", "This browser plays on the system's loudspeaker alone. Choose it in the system's settings.");
}

/** @param {string} text */
function isAddress(text) {
  return URL.canParse(text, globalThis.location?.href);
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
