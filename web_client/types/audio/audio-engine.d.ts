/**
 * The devices of a talk: microphone, loudspeaker and meters. It opens once a talk and stays open when the connection
 * changes. It warns when a device goes away or the browser pauses the sound.
 */
import { AudioGraph } from "./audio-graph.js";
export type AudioEngineListener = {
    /**
     * 20 times a second
     */
    onLevels: (levels: {
        input: number;
        output: number;
    }) => void;
    /**
     * the talk goes on
     */
    onWarning: (code: string, message: string) => void;
    /**
     * in place of the one before
     */
    onNewMicrophone: (track: MediaStreamTrack) => void;
};
export declare class AudioEngine {
    #private;
    audio: AudioGraph;
    /**
     * Must be created in the call of a click's handler: without one, browsers keep an AudioContext suspended.
     * @param {AudioEngineListener} listener
     * @param {{muted: boolean, microphone: boolean}} options  without a microphone the talk is typed, and heard
     */
    constructor(listener: AudioEngineListener, { muted, microphone }: {
        muted: boolean;
        microphone: boolean;
    });
    /** Whether `open` will ask nobody: the microphone is permitted already, or not wanted. Resolves in any case. */
    isPermitted(): Promise<boolean>;
    /**
     * Opens the microphone, and waits for the worklets. Further calls only resume the sound.
     * @throws {import("./microphone.js").MicrophoneError}
     */
    open(): Promise<void>;
    /** @param {boolean} muted */
    setMuted(muted: boolean): void;
    close(): Promise<void>;
}
