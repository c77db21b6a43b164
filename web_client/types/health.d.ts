/** The Health tab: draws `/status`, with the latencies of the last ten minutes. */
export type StrategyStatus = {
    name: string;
    /**
     * closed, open or half_open; missing for a strategy that can't fail
     */
    breaker?: string;
    /**
     * unknown, available, missing or misconfigured
     */
    capability?: string;
    /**
     * the breaker is open, and until when
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
