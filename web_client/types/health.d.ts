/** The Health tab: what `/status` says, drawn, with a memory of the last minutes. */
export type StrategyStatus = {
    name: string;
    /**
     * closed, open or half_open; without it the strategy can't fail
     */
    breaker?: string;
    /**
     * unknown, available, missing or misconfigured
     */
    capability?: string;
    /**
     * it rests, and until when
     */
    why?: string | null;
    last_outcome?: string | null;
    last_ago_s?: number | null;
    attempts?: number;
    successes?: number;
    latency_ms?: Record<string, number | null>;
};
export declare class HealthPanel {
    #private;
    /** @param {import("./broker.js").Broker} broker */
    constructor(broker: import("./broker.js").Broker);
    /** @param {boolean} visible */
    setVisible(visible: boolean): void;
}
