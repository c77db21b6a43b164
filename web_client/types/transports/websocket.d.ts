/**
 * The Realtime API over a WebSocket: through the broker's proxy, or straight to Azure where the plan says so. Both carry
 * the same events, with the audio in them.
 */
export type TransportContext = import("./transport.js").TransportContext;
export type Transport = import("./transport.js").Transport;
export type Failure = import("../session-machine.js").Failure;
export type Signal = import("../events.js").Signal;
/** @implements {Transport} */
export declare class WebSocketTransport implements Transport {
    #private;
    reportsTurns: boolean;
    switchesAgents: boolean;
    /** @param {TransportContext} context */
    constructor(context: TransportContext);
    /** @param {AbortSignal} signal */
    open(signal: AbortSignal): Promise<void>;
    /** @param {object} event */
    send(event: object): void;
    interrupt(): Promise<import("../audio/worklets.js").Cut[]>;
    /** Azure does not know what was played, and a second cancel of the same answer does no harm. */
    yieldToUser(): Promise<import("../audio/worklets.js").Cut[]>;
    replaceMicrophone(): Promise<void>;
    close(): void;
}
