/**
 * Writes down what is said: lines for the screen, and turns for the memory where nobody else reports them. One
 * conversation a connection; what is left over when it ends is not lost.
 */
export type Line = import("./conversation.js").Line;
export type Turn = import("./conversation.js").Turn;
export type Signal = import("./events.js").Signal;
export type TurnContext = {
    sessionId: string;
    sessionToken: string;
    agentId: string;
    /**
     * false where the proxy does it
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
    /** The connection is over: tells what waited, and hands over the words that were cut off with it. */
    end(): void;
    /** @param {Signal} signal */
    handle(signal: Signal): void;
    /**
     * @param {string} itemId
     * @param {string} words
     */
    typed(itemId: string, words: string): void;
    /** @param {import("./audio/jitter-buffer.js").Cut[] | null} cuts null where only the peer knows what was cut */
    interrupted(cuts: import("./audio/jitter-buffer.js").Cut[] | null): void;
    /** Resolves when all turns have arrived; no later than in half a second. */
    settled(): Promise<void>;
    /** The page closes: the last turns go out with it. */
    flushOnClose(): void;
}
