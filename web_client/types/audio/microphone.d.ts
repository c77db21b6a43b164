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
 * @param {MediaDevices | undefined} [devices] undefined in an insecure context
 * @returns {Promise<MediaStream>}
 * @throws {MicrophoneError}
 */
export declare function openMicrophone(devices?: MediaDevices | undefined): Promise<MediaStream>;
