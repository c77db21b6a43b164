/** Opens the microphone with the browser's echo cancellation, and turns its errors into messages for users. */

const CONSTRAINTS = {
  audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: { ideal: 1 } },
};

/** @type {Record<string, [string, string]>} */
const FAULTS = {
  NotAllowedError: ["microphone_denied", "The microphone is blocked. Allow it in the address bar, then press Talk again."],
  SecurityError: ["microphone_denied", "This page may not use the microphone. Open it over https, in a tab of its own."],
  NotFoundError: ["microphone_missing", "No microphone was found. Plug one in, then press Talk again."],
  NotReadableError: ["microphone_busy", "Another program is using the microphone. Close it, then press Talk again."],
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

/**
 * Asks for the microphone.
 * @param {MediaDevices | undefined} [devices] undefined in an insecure context
 * @returns {Promise<MediaStream>}
 * @throws {MicrophoneError}
 */
export async function openMicrophone(devices = globalThis.navigator?.mediaDevices) {
  if (!devices?.getUserMedia) {
    throw new MicrophoneError("microphone_insecure", "Browsers give the microphone to secure pages alone. Open this page over https.");
  }
  try {
    return await devices.getUserMedia(CONSTRAINTS);
  } catch (error) {
    const name = error instanceof DOMException ? error.name : "";
    const [code, message] = FAULTS[name] ?? ["microphone_failed", "The microphone could not be opened. Check it, then press Talk again."];
    throw new MicrophoneError(code, message);
  }
}
