/**
 * Translates server events into signals: both dialects (preview with Voice Live, and GA), the filtered WebRTC stream, and
 * the broker's own events. Pure: a parsed server event in, a `Signal` out, or null for an event that the client ignores.
 */
export type Signal = {
    kind: "ready";
    dialect: string | null;
    upstream: string | null;
    resource: string | null;
} | {
    kind: "resuming";
    reason: string;
    retryAfterMs: number | null;
} | {
    kind: "resumed";
    dialect: string | null;
    upstream: string | null;
    resource: string | null;
} | {
    kind: "agent_switched";
    agentId: string;
} | {
    kind: "item";
    itemId: string;
    previousItemId: string | null;
    role: "user" | "assistant";
} | {
    kind: "speech_started";
} | {
    kind: "speech_stopped";
} | {
    kind: "response_started";
    responseId: string;
} | {
    kind: "response_done";
    responseId: string;
    status: string;
} | {
    kind: "audio";
    responseId: string;
    itemId: string;
    contentIndex: number;
    base64: string;
} | {
    kind: "audio_done";
    itemId: string;
} | {
    kind: "playback_started";
} | {
    kind: "playback_stopped";
} | {
    kind: "transcript_delta";
    speaker: Speaker;
    itemId: string;
    responseId: string | null;
    text: string;
} | {
    kind: "transcript_done";
    speaker: Speaker;
    itemId: string;
    responseId: string | null;
    text: string;
} | {
    kind: "transcription_failed";
    itemId: string;
} | {
    kind: "session_expired";
} | {
    kind: "error";
    code: string;
    message: string;
    retryable: boolean;
};
export type Speaker = "user" | "assistant";
export type ServerEvent = Record<string, any>;
/**
 * @param {unknown} event parsed JSON
 * @returns {Signal | null}
 */
export declare function readEvent(event: unknown): Signal | null;
/**
 * As `readEvent`, from the text of a frame. Returns null for a frame that is not JSON.
 * @param {unknown} frame
 * @returns {Signal | null}
 */
export declare function readFrame(frame: unknown): Signal | null;
/**
 * The events that add a typed message and ask for an answer.
 * @param {string} itemId chosen by the client, at most 32 characters
 * @param {string} words
 */
export declare function textEvents(itemId: string, words: string): ({
    type: string;
    item: {
        id: string;
        type: string;
        role: string;
        content: {
            type: string;
            text: string;
        }[];
    };
} | {
    item?: undefined;
    type: string;
})[];
/** @param {import("./audio/worklets.js").Cut} cut */
export declare function truncateEvent({ itemId, contentIndex, playedMs }: import("./audio/worklets.js").Cut): {
    type: string;
    item_id: string;
    content_index: number;
    audio_end_ms: number;
};
