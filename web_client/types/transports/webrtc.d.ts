/**
 * WebRTC: media goes straight between browser and Azure. The offer goes to Azure with the ephemeral token, or through the
 * broker (`webrtc_relay`) for networks and tokens that Azure's own endpoint refuses; the media path is the same.
 */
export type TransportContext = import("./transport.js").TransportContext;
export type Transport = import("./transport.js").Transport;
export type Exchange = (offer: string, signal: AbortSignal) => Promise<{
    answer: string;
    hangUp: () => void;
}>;
/** @implements {Transport} */
export declare class WebRtcTransport implements Transport {
    #private;
    reportsTurns: boolean;
    switchesAgents: boolean;
    /**
     * @param {TransportContext} context
     * @throws {import("./transport.js").ConnectionFailure} where the browser has no WebRTC
     */
    constructor(context: TransportContext);
    /** @param {AbortSignal} signal */
    open(signal: AbortSignal): Promise<void>;
    /** @param {object} event */
    send(event: object): void;
    interrupt(): Promise<null>;
    /** @param {MediaStreamTrack} track */
    replaceMicrophone(track: MediaStreamTrack): Promise<void>;
    yieldToUser(): Promise<null>;
    close(): void;
}
