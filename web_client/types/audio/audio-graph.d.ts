/**
 * The page's audio graph: one AudioContext with the microphone, the meters and the playback. It outlives connections, so
 * that a reconnect asks neither for the microphone's permission nor for a click to start the sound.
 *
 * Any of it may be missing, throw, or never settle: browsers without a loudspeaker, privacy extensions, old engines. Then
 * the graph goes on with what is left. WebRTC needs no AudioContext; without one there are only no levels. A WebSocket's
 * sound needs the worklets; capture and playback begin when those arrive, however late.
 */
export type Cut = import("./worklets.js").Cut;
export type PlaybackEvent = import("./worklets.js").PlaybackEvent;
export type PlaybackCommand = import("./worklets.js").PlaybackCommand;
export declare class AudioGraph {
    #private;
    /** Called when the browser suspends the sound. */
    onPaused: () => void;
    /** Must be created in the call of a click's handler: without one, browsers keep an AudioContext suspended. */
    constructor();
    /** Whether sound can be played and recorded over a WebSocket: the worklets are there. */
    get hasWorklets(): boolean;
    /** Loads the worklets, and resumes the context where the browser has suspended it. Resolves in any case, in seconds. */
    start(): Promise<void>;
    resume(): Promise<void>;
    get microphone(): MediaStream | null;
    /**
     * Replaces the microphone.
     * @param {MediaStream} stream
     */
    setMicrophone(stream: MediaStream): void;
    /** @param {boolean} muted silence is sent, because Azure's turn detection needs it to find the end of a sentence */
    setMuted(muted: boolean): void;
    /**
     * The microphone as PCM16 at 24 kHz, a chunk every 20 ms, until `stopCapture`.
     * @param {(chunk: Int16Array) => void} onChunk
     */
    startCapture(onChunk: (chunk: Int16Array) => void): void;
    stopCapture(): void;
    /**
     * Plays PCM16 at 24 kHz, until `stopPlayback`.
     * @param {(sounding: boolean) => void} onSounding
     */
    startPlayback(onSounding: (sounding: boolean) => void): void;
    stopPlayback(): void;
    /**
     * @param {string} itemId
     * @param {number} contentIndex
     * @param {Int16Array<ArrayBuffer>} pcm transferred: the caller can't use it any more
     */
    play(itemId: string, contentIndex: number, pcm: Int16Array<ArrayBuffer>): void;
    /** @param {string} itemId whose audio is complete */
    finish(itemId: string): void;
    /**
     * Stops the playback at once.
     * @returns {Promise<Cut[]>} the items that were cut, and how far each was played
     */
    clear(): Promise<Cut[]>;
    /**
     * Plays a WebRTC stream, until `detachRemote`.
     * @param {MediaStream} stream
     */
    attachRemote(stream: MediaStream): void;
    /** @param {boolean} muted */
    muteRemote(muted: boolean): void;
    detachRemote(): void;
    /** Both sides' loudness now, from 0 (-60 dB or less) to 1 (full scale), linear in decibels. */
    levels(): {
        input: number;
        output: number;
    };
    close(): Promise<void>;
}
