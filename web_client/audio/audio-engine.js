/**
 * The devices of a talk: microphone, loudspeaker and meters. It opens once a talk and stays open when the connection
 * changes. It warns when a device goes away or the browser pauses the sound.
 */

import { within } from "../bounded.js";
import { AudioGraph } from "./audio-graph.js";
import { openMicrophone } from "./microphone.js";

/**
 * @typedef {object} AudioEngineListener
 * @property {(levels: {input: number, output: number}) => void} onLevels  20 times a second
 * @property {(code: string, message: string) => void} onWarning  the talk goes on
 * @property {(isUnheard: boolean) => void} onUnheard  the microphone is in use elsewhere, or is heard again
 * @property {(track: MediaStreamTrack) => void} onNewMicrophone  in place of the one before
 */

const LEVELS_EVERY_MS = 50;

/**
 * @typedef {object} Device
 * @property {string} id
 * @property {string} label  empty until the microphone is permitted
 *
 * @typedef {{microphones: Device[], speakers: Device[]}} Devices
 */

/** How long a browser may take to say whether the microphone is permitted. */
const PERMISSION_TIMEOUT_MS = 300;
const LISTING_TIMEOUT_MS = 2_000;

export class AudioEngine {
  #listener;
  #closing = new AbortController();
  #muted;
  #wantsMicrophone;
  /** The chosen microphone. @type {string | undefined} */
  #microphoneId;
  #starting;
  /** The microphone that was unplugged, and is taken back when it is there again. */
  #lostId = "";
  /** @type {Promise<void> | null} */
  #opening = null;

  /**
   * Must be created in the call of a click's handler: without one, browsers keep an AudioContext suspended.
   * @param {AudioEngineListener} listener
   * @param {{muted: boolean, microphone: boolean}} options  without a microphone the talk is typed, and heard
   */
  constructor(listener, { muted, microphone }) {
    this.#listener = listener;
    this.#muted = muted;
    this.#wantsMicrophone = microphone;
    this.audio = new AudioGraph();
    this.audio.setMuted(muted);
    if (microphone) this.audio.keepWords();
    this.#starting = this.audio.start(); // the worklets load while somebody answers the prompt
  }

  /** Whether `open` was called, and has nobody to ask. */
  get isOpen() {
    return this.#opening !== null;
  }

  /** Whether `open` will ask nobody: the microphone is permitted already, or not wanted. Resolves in any case. */
  async isPermitted() {
    if (!this.#wantsMicrophone) return true;
    try {
      const name = /** @type {PermissionName} */ ("microphone"); // Firefox before 131 does not know it, and throws
      const { state } = await within(navigator.permissions.query({ name }), PERMISSION_TIMEOUT_MS);
      return state === "granted";
    } catch {
      return false;
    }
  }

  /**
   * Opens the microphone, and waits for the worklets. Further calls only resume the sound.
   * @throws {import("./microphone.js").MicrophoneError}
   */
  async open() {
    this.#opening ??= this.#open();
    await this.#opening;
    await this.audio.resume();
  }

  /** @param {boolean} muted */
  setMuted(muted) {
    this.#muted = muted;
    this.audio.setMuted(muted);
  }

  /**
   * Uses this microphone from now on. Before the talk's microphone is open, it is the one that will be asked for.
   * @param {string} id of a device; empty is the system's
   * @throws {import("./microphone.js").MicrophoneError} where it can't be opened: the one before stays
   */
  async setMicrophone(id) {
    const before = this.#microphoneId;
    this.#microphoneId = id || undefined;
    if (!this.audio.microphone) return;
    try {
      this.#listener.onNewMicrophone(await this.#takeMicrophone());
    } catch (error) {
      this.#microphoneId = before;
      throw error;
    }
  }

  async close() {
    this.#closing.abort();
    await this.audio.close();
  }

  async #open() {
    const { signal } = this.#closing;
    if (this.#wantsMicrophone) await this.#takeMicrophone(await this.isPermitted());
    await this.#starting;
    if (signal.aborted) return;
    const levels = setInterval(() => this.#listener.onLevels(this.audio.levels()), LEVELS_EVERY_MS);
    signal.addEventListener("abort", () => clearInterval(levels));
    navigator.mediaDevices?.addEventListener?.("devicechange", () => void this.#devicesChanged(), { signal });
    const resume = () => void this.audio.resume().catch(() => undefined); // closed meanwhile
    document.addEventListener("visibilitychange", resume, { signal });
    document.addEventListener("pointerdown", resume, { signal });
    this.audio.onPaused = () => {
      const message = "The browser paused the sound. Tap this page, or bring it to the front, to hear the answer.";
      if (!signal.aborted) this.#listener.onWarning("sound_paused", message);
    };
    this.audio.onResumed = () => {
      if (!signal.aborted) this.#listener.onWarning("sound_back", "The sound is back.");
    };
  }

  /**
   * @param {boolean} [isPermitted]  then nobody is asked, and the browser has to answer in time
   * @param {string | null} [deviceId]  the chosen one by default; null is the system's
   * @returns {Promise<MediaStreamTrack>}
   */
  async #takeMicrophone(isPermitted = true, deviceId = this.#microphoneId) {
    const { signal } = this.#closing;
    const stream = await openMicrophone({ isPermitted, signal, deviceId: deviceId ?? undefined });
    const [track] = stream.getAudioTracks();
    this.audio.setMicrophone(stream);
    track.addEventListener("ended", () => this.#microphoneLost(), { signal });
    track.addEventListener("mute", () => this.#microphoneSilent(track), { signal });
    track.addEventListener("unmute", () => this.#microphoneHeard(track), { signal });
    this.#listener.onUnheard(track.muted);
    return track;
  }

  #microphoneLost() {
    const message = "The microphone was unplugged. Plug it in again; until then you can type.";
    this.#lostId = this.audio.microphone?.getAudioTracks()[0]?.getSettings().deviceId ?? "";
    this.#listener.onWarning("microphone_lost", message);
    void this.#replaceMicrophone();
  }

  /** @param {MediaStreamTrack} track */
  #microphoneSilent(track) {
    if (track !== this.audio.microphone?.getAudioTracks()[0]) return; // replaced
    this.#listener.onUnheard(true);
    if (this.#muted) return;
    const message = "The microphone is in use elsewhere, or switched off. The talk goes on when it is back; until then you can type.";
    this.#listener.onWarning("microphone_silent", message);
  }

  /** @param {MediaStreamTrack} track */
  #microphoneHeard(track) {
    if (track !== this.audio.microphone?.getAudioTracks()[0]) return;
    this.#listener.onUnheard(false);
    if (!this.#muted) this.#listener.onWarning("microphone_back", "The microphone is back.");
    void this.audio.resume().catch(() => undefined); // what took the microphone may have paused the sound
  }

  async #devicesChanged() {
    await this.#replaceMicrophone();
    const { speakerId } = this.audio;
    const { microphones, speakers } = await listDevices();
    if (this.#lostId && microphones.some(({ id }) => id === this.#lostId)) await this.#takeBack(this.#lostId);
    if (!speakerId || speakers.some(({ id }) => id === speakerId)) return;
    await this.audio.setSpeaker("").catch(() => undefined);
    this.#listener.onWarning("speaker_lost", "The chosen loudspeaker is gone. You hear the answer on the system's.");
  }

  /** @param {string} id */
  async #takeBack(id) {
    try {
      this.#listener.onNewMicrophone(await this.#takeMicrophone(true, id));
      this.#lostId = "";
    } catch {
      // Not usable yet: the next `devicechange` tries again.
    }
  }

  async #replaceMicrophone() {
    const [old] = this.audio.microphone?.getAudioTracks() ?? [];
    if (old?.readyState !== "ended") return;
    try {
      // The system's microphone stands in for a chosen one that is gone, which is taken back when it is there again.
      const track = await this.#takeMicrophone().catch(() => this.#takeMicrophone(true, null));
      this.#listener.onNewMicrophone(track);
      this.#listener.onWarning("microphone_back", "The microphone is back.");
    } catch {
      // No microphone yet: `devicechange` fires when one is plugged in.
    }
  }
}

/**
 * The devices that a page may choose from. Browsers name none before the microphone is permitted; some never name loudspeakers.
 * @returns {Promise<Devices>}
 */
export async function listDevices() {
  try {
    const all = await within(navigator.mediaDevices.enumerateDevices(), LISTING_TIMEOUT_MS);
    const of = (/** @type {MediaDeviceKind} */ kind) =>
      all.filter((device) => device.kind === kind && device.deviceId).map(({ deviceId, label }) => ({ id: deviceId, label }));
    return { microphones: of("audioinput"), speakers: of("audiooutput") };
  } catch {
    return { microphones: [], speakers: [] };
  }
}
