/**
 * The loudspeaker on the audio thread: PCM16 at 24 kHz through a jitter buffer to the device's rate. It counts what was
 * played, and is silent within 10 ms after a `clear`.
 */
export type PlaybackCommand = {
    type: "push";
    itemId: string;
    contentIndex: number;
    pcm: Int16Array;
} | {
    type: "finish";
    itemId: string;
} | {
    type: "clear";
    request: number;
    unheardMs: number;
} | {
    type: "stop";
};
export type PlaybackEvent = {
    type: "cleared";
    request: number;
    cuts: import("./jitter-buffer.js").Cut[];
} | {
    type: "sounding";
    sounding: boolean;
    underruns: number;
};
