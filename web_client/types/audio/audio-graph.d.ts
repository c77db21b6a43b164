/**
 * The page's audio: one AudioContext with the microphone, the meters, and what is played. It outlives connections, so
 * that moving from one to the next costs neither the microphone's permission nor the loudspeaker.
 */
export type Cut = import("./jitter-buffer.js").Cut;
export type PlaybackEvent = import("./playback-worklet.js").PlaybackEvent;
export type PlaybackCommand = import("./playback-worklet.js").PlaybackCommand;
export declare class AudioGraph {
    #private;
    /** Called when the browser puts the sound to sleep by itself. */
    onPaused: () => void;
    /** To be made in a click's own call, or the browser keeps it silent. */
    constructor();
    /** Loads the worklets, and wakes the context where the browser has put it to sleep. */
    start(): Promise<void>;
    resume(): Promise<void>;
    get microphone(): MediaStream | null;
    /**
     * Takes a microphone in, in place of the one before.
     * @param {MediaStream} stream
     */
    setMicrophone(stream: MediaStream): void;
    /** @param {boolean} muted silence is sent, so that the other side notices the end of a sentence */
    setMuted(muted: boolean): void;
    /**
     * The microphone as PCM16 at 24 kHz, a chunk every 20 ms, until `stopCapture`.
     * @param {(chunk: Int16Array) => void} onChunk
     */
    startCapture(onChunk: (chunk: Int16Array) => void): void;
    stopCapture(): void;
    /**
     * Opens the loudspeaker for PCM16 at 24 kHz, until `stopPlayback`.
     * @param {(sounding: boolean) => void} onSounding
     */
    startPlayback(onSounding: (sounding: boolean) => void): void;
    stopPlayback(): void;
    /**
     * @param {string} itemId
     * @param {number} contentIndex
     * @param {Int16Array<ArrayBuffer>} pcm taken away
     */
    play(itemId: string, contentIndex: number, pcm: Int16Array<ArrayBuffer>): void;
    /** @param {string} itemId whose audio is complete */
    finish(itemId: string): void;
    /**
     * Silences what is played, at once.
     * @returns {Promise<Cut[]>} what was cut, and how far the ear had come
     */
    clear(): Promise<Cut[]>;
    /**
     * Plays what comes over WebRTC, until `detachRemote`.
     * @param {MediaStream} stream
     */
    attachRemote(stream: MediaStream): void;
    /** @param {boolean} muted */
    muteRemote(muted: boolean): void;
    detachRemote(): void;
    /** Both sides' loudness now, from 0 (silence) to 1 (as loud as it gets), in equal steps to the ear. */
    levels(): {
        input: number;
        output: number;
    };
    close(): Promise<void>;
}
