/**
 * All that a talk needs of the machine it runs on: microphone, loudspeaker, meters. It opens once a talk, survives every
 * change of connection, and says what happened when a device goes away or the browser pauses the sound.
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
     * To be made in a click's own call, or the browser keeps it silent.
     * @param {AudioEngineListener} listener
     * @param {boolean} muted
     */
    constructor(listener: AudioEngineListener, muted: boolean);
    /**
     * Microphone first, then the worklets; a second call finds them there.
     * @throws {import("./microphone.js").MicrophoneError}
     */
    open(): Promise<void>;
    /** @param {boolean} muted */
    setMuted(muted: boolean): void;
    close(): Promise<void>;
}
