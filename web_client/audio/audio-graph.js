/**
 * The page's audio graph: one AudioContext with the microphone, the meters and the playback. It outlives connections, so
 * that a reconnect asks neither for the microphone's permission nor for a click to start the sound.
 *
 * Any of it may be missing, throw, or never settle: browsers without a loudspeaker, privacy extensions, old engines. Then
 * the graph goes on with what is left. WebRTC needs no AudioContext; without one there are only no levels. A WebSocket's
 * sound needs the worklets; capture and playback begin when those arrive, however late.
 */

import { within } from "../bounded.js";
import { FirstWords } from "./first-words.js";
import { WIRE_RATE, canResample } from "./rates.js";

/**
 * @typedef {import("./worklets.js").Cut} Cut
 * @typedef {import("./worklets.js").PlaybackEvent} PlaybackEvent
 * @typedef {import("./worklets.js").PlaybackCommand} PlaybackCommand
 */

const ORDINARY_RATE = 48_000;
const CLEAR_TIMEOUT_MS = 200;
const SILENCE_DB = -60;
const WORKLETS_TIMEOUT_MS = 4_000;
const RESUME_TIMEOUT_MS = 1_000;
/** A phone call takes the sound away for minutes, and no browser says when it may come back: it is tried so often. */
const RESUME_EVERY_MS = 3_000;

export class AudioGraph {
  /** @type {AudioContext | null} */
  #context = null;
  /** @type {AnalyserNode | null} */
  #inputMeter = null;
  /** @type {AnalyserNode | null} */
  #outputMeter = null;
  /** What the loudspeaker gets of the worklet's sound. @type {GainNode | null} */
  #gain = null;
  #volume = 1;
  /** The chosen loudspeaker; empty is the system's. */
  #speakerId = "";
  /** @type {MediaStream | null} */
  #microphone = null;
  /** @type {MediaStreamAudioSourceNode | null} */
  #source = null;
  #hasWorklets = false;
  /** @type {((chunk: Int16Array) => void) | null} */
  #onChunk = null;
  #firstWords = new FirstWords();
  /** @type {((sounding: boolean) => void) | null} */
  #onSounding = null;
  /** @type {AudioWorkletNode | null} */
  #capture = null;
  /** @type {AudioWorkletNode | null} */
  #playback = null;
  #muted = false;
  #clearRequests = 0;
  /** @type {Map<number, (cuts: Cut[]) => void>} */
  #clearing = new Map();
  /** @type {HTMLAudioElement | null} */
  #speaker = null;
  /** @type {MediaStreamAudioSourceNode | null} */
  #remote = null;

  /** Called when the browser suspends the sound. */
  onPaused = () => {};
  /** Called when it goes on. */
  onResumed = () => {};
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #resuming;

  /** Must be created in the call of a click's handler: without one, browsers keep an AudioContext suspended. */
  constructor() {
    const context = attempt(newContext);
    if (!context) return;
    this.#context = context;
    context.onstatechange = () => this.#stateChanged(context.state);
    this.#inputMeter = attempt(() => new AnalyserNode(context, { fftSize: 1024 }));
    this.#outputMeter = attempt(() => new AnalyserNode(context, { fftSize: 1024 }));
    this.#gain = attempt(() => new GainNode(context));
    if (this.#gain) this.#gain.connect(context.destination);
  }

  /** Whether sound can be played and recorded over a WebSocket: the worklets are there. */
  get hasWorklets() {
    return this.#hasWorklets;
  }

  /** Loads the worklets, and resumes the context where the browser has suspended it. Resolves in any case, in seconds. */
  async start() {
    const loading = (async () => {
      await this.#context?.audioWorklet.addModule(new URL("./worklets.js", import.meta.url));
      if (this.#context) this.#beginWorklets();
    })();
    await Promise.all([within(loading, WORKLETS_TIMEOUT_MS).catch(warn), this.resume()]);
  }

  async resume() {
    const context = this.#context;
    if (context && context.state !== "running" && context.state !== "closed") {
      await within(context.resume(), RESUME_TIMEOUT_MS).catch(warn); // without a click: at the next one
    }
    if (this.#speaker?.paused) await within(this.#speaker.play(), RESUME_TIMEOUT_MS).catch(() => undefined);
  }

  get microphone() {
    return this.#microphone;
  }

  /** A stream of silence, in place of a microphone; null where there is no AudioContext. */
  silence() {
    const context = this.#context;
    return context ? attempt(() => new MediaStreamAudioDestinationNode(context).stream) : null;
  }

  /**
   * Replaces the microphone.
   * @param {MediaStream} stream
   */
  setMicrophone(stream) {
    this.#source?.disconnect();
    if (this.#microphone && this.#microphone !== stream) stop(this.#microphone);
    this.#microphone = stream;
    for (const track of stream.getAudioTracks()) track.enabled = !this.#muted;
    this.#firstWords.drop(); // another device's sound does not go on with them
    this.#source = this.#sourceOf(stream);
    if (this.#inputMeter) this.#source?.connect(this.#inputMeter);
    if (this.#capture) this.#source?.connect(this.#capture);
  }

  /** @param {boolean} muted silence is sent, because Azure's turn detection needs it to find the end of a sentence */
  setMuted(muted) {
    this.#muted = muted;
    if (muted) this.#firstWords.drop();
    for (const track of this.#microphone?.getAudioTracks() ?? []) track.enabled = !muted;
  }

  /** No connection takes the microphone's sound for now: what is said is kept for `takeWords`, three seconds at most. */
  keepWords() {
    this.#firstWords.begin();
    this.#beginCapture();
  }

  /** What was kept, in order; nothing more is. */
  takeWords() {
    const words = this.#firstWords.take();
    if (!this.#onChunk) this.#endCapture();
    return words;
  }

  /**
   * The microphone as PCM16 at 24 kHz, a chunk every 20 ms, until `stopCapture`.
   * @param {(chunk: Int16Array) => void} onChunk
   */
  startCapture(onChunk) {
    this.#onChunk = onChunk;
    this.#beginCapture();
  }

  stopCapture() {
    this.#onChunk = null;
    if (!this.#firstWords.keeps) this.#endCapture();
  }

  #beginCapture() {
    if (this.#capture || !this.#context || !this.#hasWorklets) return; // begins when they have loaded
    const options = { numberOfInputs: 1, numberOfOutputs: 0 };
    const context = this.#context;
    const node = attempt(() => new AudioWorkletNode(context, "voice-capture", options));
    if (!node) return;
    node.port.onmessage = ({ data }) => this.#captured(new Int16Array(data));
    this.#source?.connect(node);
    this.#capture = node;
  }

  #endCapture() {
    if (!this.#capture) return;
    this.#capture.port.onmessage = null;
    this.#capture.port.postMessage("stop");
    this.#source?.disconnect(this.#capture);
    this.#capture = null;
  }

  /** @param {Int16Array} chunk */
  #captured(chunk) {
    if (this.#onChunk) this.#onChunk(chunk);
    else if (!this.#muted) this.#firstWords.add(chunk);
  }

  /**
   * Plays PCM16 at 24 kHz, until `stopPlayback`.
   * @param {(sounding: boolean) => void} onSounding
   */
  startPlayback(onSounding) {
    this.stopPlayback();
    this.#onSounding = onSounding;
    if (!this.#context || !this.#hasWorklets) return; // begins when they have loaded
    const options = { numberOfInputs: 0, outputChannelCount: [1] };
    const context = this.#context;
    const node = attempt(() => new AudioWorkletNode(context, "voice-playback", options));
    if (!node) return;
    node.port.onmessage = (/** @type {MessageEvent<PlaybackEvent>} */ { data: event }) => {
      if (event.type === "sounding") return onSounding(event.sounding);
      this.#clearing.get(event.request)?.(event.cuts);
    };
    if (this.#outputMeter) node.connect(this.#outputMeter);
    node.connect(this.#gain ?? context.destination);
    this.#playback = node;
  }

  stopPlayback() {
    this.#onSounding = null;
    if (!this.#playback) return;
    this.#playback.port.onmessage = null;
    this.#send({ type: "stop" });
    this.#playback.disconnect();
    this.#playback = null;
    for (const settle of this.#clearing.values()) settle([]);
  }

  /**
   * @param {string} itemId
   * @param {number} contentIndex
   * @param {Int16Array<ArrayBuffer>} pcm transferred: the caller can't use it any more
   */
  play(itemId, contentIndex, pcm) {
    this.#playback?.port.postMessage({ type: "push", itemId, contentIndex, pcm }, [pcm.buffer]);
  }

  /** @param {string} itemId whose audio is complete */
  finish(itemId) {
    this.#send({ type: "finish", itemId });
  }

  /**
   * Stops the playback at once.
   * @returns {Promise<Cut[]>} the items that were cut, and how far each was played
   */
  clear() {
    if (!this.#playback || !this.#context) return Promise.resolve([]);
    this.#clearRequests += 1;
    const request = this.#clearRequests;
    const { outputLatency = 0, baseLatency = 0 } = this.#context;
    this.#send({ type: "clear", request, unheardMs: (outputLatency || baseLatency) * 1000 });
    return new Promise((resolve) => {
      const settle = (/** @type {Cut[]} */ cuts) => {
        clearTimeout(timer);
        this.#clearing.delete(request);
        resolve(cuts);
      };
      const timer = setTimeout(settle, CLEAR_TIMEOUT_MS, []);
      this.#clearing.set(request, settle);
    });
  }

  /**
   * Plays a WebRTC stream, until `detachRemote`.
   * @param {MediaStream} stream
   */
  attachRemote(stream) {
    this.detachRemote();
    // An element plays it: Chromium decodes a WebRTC stream only while one does. The context only measures it.
    const speaker = new Audio();
    speaker.srcObject = stream;
    speaker.volume = this.#volume;
    if (this.#speakerId) void within(speaker.setSinkId(this.#speakerId), RESUME_TIMEOUT_MS).catch(warn);
    this.#speaker = speaker;
    this.#remote = this.#sourceOf(stream);
    if (this.#outputMeter) this.#remote?.connect(this.#outputMeter);
    speaker.play().catch(() => undefined); // paused by the autoplay policy: `resume` tries again
  }

  /** @param {number} volume from 0 to 1 */
  setVolume(volume) {
    this.#volume = volume;
    if (this.#gain) this.#gain.gain.value = volume;
    if (this.#speaker) this.#speaker.volume = volume;
  }

  /** Whether this browser lets a page choose the loudspeaker, on every transport. */
  get choosesSpeaker() {
    return typeof AudioContext !== "undefined" && "setSinkId" in AudioContext.prototype && "setSinkId" in HTMLMediaElement.prototype;
  }

  /**
   * Plays on this loudspeaker from now on, whatever the connection.
   * @param {string} id of a device; empty is the system's
   */
  async setSpeaker(id) {
    const context = /** @type {(AudioContext & {setSinkId: (id: string) => Promise<void>}) | null} */ (this.#context);
    await within(Promise.all([context?.setSinkId(id), this.#speaker?.setSinkId(id)]), RESUME_TIMEOUT_MS);
    this.#speakerId = id;
  }

  get speakerId() {
    return this.#speakerId;
  }

  /** @param {boolean} muted */
  muteRemote(muted) {
    if (this.#speaker) this.#speaker.muted = muted;
  }

  detachRemote() {
    this.#remote?.disconnect();
    this.#remote = null;
    if (!this.#speaker) return;
    this.#speaker.pause();
    this.#speaker.srcObject = null;
    this.#speaker = null;
  }

  /** Both sides' loudness now, from 0 (-60 dB or less) to 1 (full scale), linear in decibels. */
  levels() {
    return { input: this.#muted ? 0 : level(this.#inputMeter), output: level(this.#outputMeter) };
  }

  async close() {
    this.takeWords();
    this.stopCapture();
    this.stopPlayback();
    this.detachRemote();
    if (this.#microphone) stop(this.#microphone);
    this.#microphone = null;
    clearInterval(this.#resuming);
    this.#resuming = undefined;
    if (this.#context && this.#context.state !== "closed") await within(this.#context.close(), RESUME_TIMEOUT_MS).catch(warn);
  }

  /** @param {string} state also `interrupted`, which only WebKit has */
  #stateChanged(state) {
    const isPaused = state !== "running" && state !== "closed";
    if (isPaused === (this.#resuming !== undefined)) return;
    clearInterval(this.#resuming);
    this.#resuming = isPaused ? setInterval(() => void this.#tryAgain(), RESUME_EVERY_MS) : undefined;
    if (isPaused) this.onPaused();
    else if (state === "running") this.onResumed();
  }

  /** Resumes what was interrupted; a browser that wants a click first refuses, and is asked again. */
  async #tryAgain() {
    const context = this.#context;
    if (context) await within(context.resume(), RESUME_TIMEOUT_MS).catch(() => undefined);
    if (this.#speaker?.paused) await within(this.#speaker.play(), RESUME_TIMEOUT_MS).catch(() => undefined);
  }

  /** The worklets have loaded: begins what waited for them. */
  #beginWorklets() {
    this.#hasWorklets = true;
    if (this.#onChunk || this.#firstWords.keeps) this.#beginCapture();
    if (this.#onSounding) this.startPlayback(this.#onSounding);
  }

  /**
   * @param {MediaStream} stream
   * @returns {MediaStreamAudioSourceNode | null}
   */
  #sourceOf(stream) {
    const context = this.#context;
    return context ? attempt(() => context.createMediaStreamSource(stream)) : null;
  }

  /** @param {PlaybackCommand} command */
  #send(command) {
    this.#playback?.port.postMessage(command);
  }
}

function newContext() {
  const context = new AudioContext({ latencyHint: "interactive" });
  if (canResample(context.sampleRate, WIRE_RATE) && canResample(WIRE_RATE, context.sampleRate)) return context;
  void context.close();
  return new AudioContext({ latencyHint: "interactive", sampleRate: ORDINARY_RATE });
}

/** @param {MediaStream} stream */
function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** @param {AnalyserNode | null} meter */
function level(meter) {
  if (!meter) return 0;
  const samples = new Float32Array(meter.fftSize);
  meter.getFloatTimeDomainData(samples);
  const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
  const decibels = 10 * Math.log10(power + 1e-12);
  return Math.max(0, Math.min(1, 1 - decibels / SILENCE_DB));
}

/**
 * @template T
 * @param {() => T} make
 * @returns {T | null} null where the browser does not have it, or fails at it
 */
function attempt(make) {
  try {
    return make();
  } catch (error) {
    warn(error);
    return null;
  }
}

/** @param {unknown} error */
function warn(error) {
  console.warn("voice-session: the talk goes on without a part of the sound:", error);
}
