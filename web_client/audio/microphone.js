/** Opens the microphone with the browser's echo cancellation, and turns its errors into messages for users. */

const PROCESSING = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: { ideal: 1 } };

/** @type {Record<string, [string, string]>} */
const FAULTS = {
  NotAllowedError: ["microphone_denied", "The microphone is blocked. Allow it in the address bar, then press Talk again."],
  SecurityError: ["microphone_denied", "This page may not use the microphone. Open it over https, in a tab of its own."],
  NotFoundError: ["microphone_missing", "No microphone was found. Plug one in, then press Talk again."],
  NotReadableError: ["microphone_busy", "Another program is using the microphone. Close it, then press Talk again."],
  OverconstrainedError: ["microphone_missing", "The chosen microphone is gone. Choose another one."],
  AbortError: ["microphone_busy", "The microphone did not start. Unplug it, plug it in again, then press Talk."],
};

/** The microphone can't be opened. `message` says what to do. */
export class MicrophoneError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   */
  constructor(code, message) {
    super(message);
    this.name = "MicrophoneError";
    this.code = code;
  }
}

/** A prompt is a person's time, and has no limit. Where the browser asks nobody, it has to answer. */
const OPENING_TIMEOUT_MS = 8_000;

/**
 * Asks for the microphone.
 * @param {{isPermitted: boolean, signal: AbortSignal, deviceId?: string, devices?: MediaDevices}} options
 *   `isPermitted`: the browser will ask nobody. `signal`: the talk is over; a stream that comes later is stopped.
 *   `deviceId`: this microphone alone. `devices` is undefined in an insecure context
 * @returns {Promise<MediaStream>} with an audio track
 * @throws {MicrophoneError}
 */
export async function openMicrophone({ isPermitted, signal, deviceId, devices = globalThis.navigator?.mediaDevices }) {
  if (!devices?.getUserMedia) {
    throw new MicrophoneError("microphone_insecure", "Browsers give the microphone to secure pages alone. Open this page over https.");
  }
  const ending = new AbortController();
  const end = () => ending.abort(signal.reason);
  if (signal.aborted) end();
  signal.addEventListener("abort", end);
  const late = new MicrophoneError("microphone_busy", "The microphone did not start. Unplug it, plug it in again, then press Talk.");
  const timer = isPermitted ? setTimeout(() => ending.abort(late), OPENING_TIMEOUT_MS) : undefined;
  try {
    const asked = devices.getUserMedia({ audio: deviceId ? { ...PROCESSING, deviceId: { exact: deviceId } } : PROCESSING });
    asked.then((stream) => ending.signal.aborted && stop(stream), () => undefined);
    const stream = await Promise.race([asked, rejection(ending.signal)]);
    if (stream.getAudioTracks().length > 0) return stream;
    stop(stream);
    throw new MicrophoneError("microphone_missing", "No microphone was found. Plug one in, then press Talk again.");
  } catch (error) {
    if (ending.signal.aborted) throw ending.signal.reason;
    if (error instanceof MicrophoneError) throw error;
    const name = error instanceof DOMException ? error.name : "";
    const [code, message] = FAULTS[name] ?? ["microphone_failed", "The microphone could not be opened. Check it, then press Talk again."];
    throw new MicrophoneError(code, message);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", end);
  }
}

/** @param {AbortSignal} signal @returns {Promise<never>} */
function rejection(signal) {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason));
  });
}

/** @param {MediaStream} stream */
function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}
