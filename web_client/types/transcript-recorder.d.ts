/**
 * Records what is said: lines for the screen, and turns for the memory where nobody else reports them. Each connection
 * has a conversation of its own. What is incomplete when the connection ends is kept as well.
 */
export type Line = import("./conversation.js").Line;
export type Turn = import("./conversation.js").Turn;
export type Signal = import("./events.js").Signal;
export type TurnContext = {
    sessionId: string;
    sessionToken: string;
    agentId: string;
    /**
     * false where the proxy reports turns itself
     */
    reports: boolean;
};
export declare class TranscriptRecorder {
    #private;
    /**
     * @param {import("./broker.js").Broker} broker
     * @param {{onLine: (line: Line) => void, onLost: () => void}} listener
     */
    constructor(broker: import("./broker.js").Broker, { onLine, onLost }: {
        onLine: (line: Line) => void;
        onLost: () => void;
    });
    /**
     * A connection is live.
     * @param {TurnContext} context
     */
    begin(context: TurnContext): void;
    /** The connection is over: reports the turns that waited, and sends what was being said to the memory. */
    end(): void;
    /** @param {Signal} signal */
    handle(signal: Signal): void;
    /**
     * @param {string} itemId
     * @param {string} words
     */
    typed(itemId: string, words: string): void;
    /** @param {import("./audio/worklets.js").Cut[] | null} cuts null where only the peer knows what was cut */
    interrupted(cuts: import("./audio/worklets.js").Cut[] | null): void;
    /** Resolves when all turns are acknowledged, or after half a second. */
    settled(): Promise<void>;
    /** The page closes: sends the last turns. */
    flushOnClose(): void;
}
