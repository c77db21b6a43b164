/**
 * Assembles signals into lines of a transcript, and into turns for the memory. Pure.
 *
 * An item's `sequence` is its place in the connection, in the order in which items were created; transcripts come in any
 * order. An assistant's turn waits until its playback has ended: only then is it known whether it was interrupted.
 */
export type Signal = import("./events.js").Signal;
export type Speaker = import("./events.js").Speaker;
export type Line = {
    speaker: Speaker;
    text: string;
    final: boolean;
    turnId: string;
    interrupted: boolean;
};
export type Turn = {
    /**
     * the item's id
     */
    turnId: string;
    role: Speaker;
    content: string;
    sequence: number;
    interrupted: boolean;
    /**
     * ISO 8601, UTC
     */
    createdAt: string;
};
export type ConversationUpdate = {
    lines: Line[];
    turns: Turn[];
};
export type Item = {
    itemId: string;
    speaker: Speaker;
    sequence: number;
    text: string;
    final: boolean;
    interrupted: boolean;
    /**
     * whether it was returned as a turn
     */
    reported: boolean;
    createdAt: string;
};
export declare class Conversation {
    #private;
    /** @param {() => Date} [now] */
    constructor(now?: () => Date);
    /**
     * Applies a signal.
     * @param {Signal} signal
     * @returns {ConversationUpdate}
     */
    apply(signal: Signal): ConversationUpdate;
    /**
     * Adds typed text: a complete user turn.
     * @param {string} itemId
     * @param {string} text
     * @returns {ConversationUpdate}
     */
    typed(itemId: string, text: string): ConversationUpdate;
    /**
     * Marks the assistant's items as interrupted.
     * @param {string[]} [itemIds] the items that were cut; without them, those that are being played
     * @returns {ConversationUpdate}
     */
    interrupted(itemIds?: string[]): ConversationUpdate;
    /**
     * Ends the conversation.
     * `turns` waited for their playback to end; `partial` are items without a final transcript.
     * @returns {{turns: Turn[], partial: Turn[]}}
     */
    close(): {
        turns: Turn[];
        partial: Turn[];
    };
}
