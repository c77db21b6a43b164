/**
 * Who said what: puts signals together into lines of a transcript, and into turns for the memory. Pure.
 *
 * An item's `sequence` is its place in the connection, by the order in which items were made; transcripts come in any
 * order. An assistant's turn waits until its sound has ended, since only then it is known whether it was interrupted.
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
     * Takes a signal in.
     * @param {Signal} signal
     * @returns {ConversationUpdate}
     */
    apply(signal: Signal): ConversationUpdate;
    /**
     * What was typed: said at once, and complete.
     * @param {string} itemId
     * @param {string} text
     * @returns {ConversationUpdate}
     */
    typed(itemId: string, text: string): ConversationUpdate;
    /**
     * The assistant was cut short.
     * @param {string[]} [itemIds] the items that were cut; without them, the one that is being heard
     * @returns {ConversationUpdate}
     */
    interrupted(itemIds?: string[]): ConversationUpdate;
    /**
     * The connection is over: turns that waited for their sound to end, and what was said but never completed.
     * @returns {{turns: Turn[], partial: Turn[]}}
     */
    close(): {
        turns: Turn[];
        partial: Turn[];
    };
}
