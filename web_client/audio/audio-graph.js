/**
 * The page's audio graph: one AudioContext with the microphone, the meters and the playback. It outlives connections, so
 * that a reconnect asks neither for the microphone's permission nor for a click to start the sound.
 */

import { WIRE_RATE } from "./pcm.js";
import { canResample } from "./resampler.js";

/**
 * @typedef {import("./jitter-buffer.js").Cut} Cut
 * @typedef {import("./playback-worklet.js").PlaybackEvent} PlaybackEvent
 * @typedef {import("./playback-worklet.js").PlaybackCommand} PlaybackCommand
 */

const ORDINARY_RATE = 48_000;
const CLEAR_TIMEOUT_MS = 200;
const SILENCE_DB = -60;

export class AudioGraph {
  #context;
  #inputMeter;
  #outputMeter;
  /** @type {MediaStream | null} */
  #microphone = null;
  /** @type {MediaStreamAudioSourceNode | null} */
  #source = null;
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

  /** Must be created in the call of a click's handler: without one, browsers keep an AudioContext suspended. */
  constructor() {
    this.#context = newContext();
    this.#context.onstatechange = () => {
      if (this.#context.state !== "running" && this.#context.state !== "closed") this.onPaused();
    };
    this.#inputMeter = new AnalyserNode(this.#context, { fftSize: 1024 });
    this.#outputMeter = new AnalyserNode(this.#context, { fftSize: 1024 });
  }

  /** Loads the worklets, and resumes the context where the browser has suspended it. */
  async start() {
    await Promise.all([
      this.#context.audioWorklet.addModule(new URL("./capture-worklet.js", import.meta.url)),
      this.#context.audioWorklet.addModule(new URL("./playback-worklet.js", import.meta.url)),
    ]);
    await this.resume();
  }

  async resume() {
    if (this.#context.state !== "running" && this.#context.state !== "closed") await this.#context.resume();
    if (this.#speaker?.paused) await this.#speaker.play().catch(() => undefined); // without a click: at the next one
  }

  get microphone() {
    return this.#microphone;
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
    this.#source = this.#context.createMediaStreamSource(stream);
    this.#source.connect(this.#inputMeter);
    if (this.#capture) this.#source.connect(this.#capture);
  }

  /** @param {boolean} muted silence is sent, because Azure's turn detection needs it to find the end of a sentence */
  setMuted(muted) {
    this.#muted = muted;
    for (const track of this.#microphone?.getAudioTracks() ?? []) track.enabled = !muted;
  }

  /**
   * The microphone as PCM16 at 24 kHz, a chunk every 20 ms, until `stopCapture`.
   * @param {(chunk: Int16Array) => void} onChunk
   */
  startCapture(onChunk) {
    this.stopCapture();
    const options = { numberOfInputs: 1, numberOfOutputs: 0 };
    const node = new AudioWorkletNode(this.#context, "voice-capture", options);
    node.port.onmessage = ({ data }) => onChunk(new Int16Array(data));
    this.#source?.connect(node);
    this.#capture = node;
  }

  stopCapture() {
    if (!this.#capture) return;
    this.#capture.port.onmessage = null;
    this.#capture.port.postMessage("stop");
    this.#source?.disconnect(this.#capture);
    this.#capture = null;
  }

  /**
   * Plays PCM16 at 24 kHz, until `stopPlayback`.
   * @param {(sounding: boolean) => void} onSounding
   */
  startPlayback(onSounding) {
    this.stopPlayback();
    const options = { numberOfInputs: 0, outputChannelCount: [1] };
    const node = new AudioWorkletNode(this.#context, "voice-playback", options);
    node.port.onmessage = (/** @type {MessageEvent<PlaybackEvent>} */ { data: event }) => {
      if (event.type === "sounding") return onSounding(event.sounding);
      this.#clearing.get(event.request)?.(event.cuts);
    };
    node.connect(this.#outputMeter);
    node.connect(this.#context.destination);
    this.#playback = node;
  }

  stopPlayback() {
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
    if (!this.#playback) return Promise.resolve([]);
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
    this.#speaker = new Audio();
    this.#speaker.srcObject = stream;
    this.#remote = this.#context.createMediaStreamSource(stream);
    this.#remote.connect(this.#outputMeter);
    this.#speaker.play().catch(() => undefined); // paused by the autoplay policy: `resume` tries again
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
    this.stopCapture();
    this.stopPlayback();
    this.detachRemote();
    if (this.#microphone) stop(this.#microphone);
    if (this.#context.state !== "closed") await this.#context.close();
  }

  /** @param {PlaybackCommand} command */
  #send(command) {
    this.#playback?.port.postMessage(command);
  }
}

function newContext() {
  const context = new AudioContext({ latencyHint: "interactive" });
  if (canResample(context.sampleRate, WIRE_RATE)) return context;
  void context.close();
  return new AudioContext({ latencyHint: "interactive", sampleRate: ORDINARY_RATE });
}

/** @param {MediaStream} stream */
function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** @param {AnalyserNode} meter */
function level(meter) {
  const samples = new Float32Array(meter.fftSize);
  meter.getFloatTimeDomainData(samples);
  const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
  const decibels = 10 * Math.log10(power + 1e-12);
  return Math.max(0, Math.min(1, 1 - decibels / SILENCE_DB));
}
