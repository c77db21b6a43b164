/** The microphone: asked for with the browser's own echo cancellation, and what to tell people when it can't be had. */
/** No microphone. `message` says what to do. */
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
 * @param {MediaDevices | undefined} [devices] missing where the page is not secure
 * @returns {Promise<MediaStream>}
 * @throws {MicrophoneError}
 */
export declare function openMicrophone(devices?: MediaDevices | undefined): Promise<MediaStream>;
