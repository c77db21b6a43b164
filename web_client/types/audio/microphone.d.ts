/** Opens the microphone with the browser's echo cancellation, and turns its errors into messages for users. */
/** The microphone can't be opened. `message` says what to do. */
export declare class MicrophoneError extends Error {
    code: string;
    /**
     * @param {string} code
     * @param {string} message
     */
    constructor(code: string, message: string);
}
/**
 * Asks for the microphone.
 * @param {{isPermitted: boolean, signal: AbortSignal, devices?: MediaDevices}} options
 *   `isPermitted`: the browser will ask nobody. `signal`: the talk is over; a stream that comes later is stopped.
 *   `devices` is undefined in an insecure context
 * @returns {Promise<MediaStream>} with an audio track
 * @throws {MicrophoneError}
 */
export declare function openMicrophone({ isPermitted, signal, devices }: {
    isPermitted: boolean;
    signal: AbortSignal;
    devices?: MediaDevices;
}): Promise<MediaStream>;
