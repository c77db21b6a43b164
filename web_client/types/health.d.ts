/** The Health tab: draws `/status`, with the latencies of the last ten minutes. */
export type StrategyStatus = {
    name: string;
    /**
     * the Azure resource that it asks; none for the proxy
     */
    resource?: string | null;
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
export type ResourceStatus = {
    name: string;
    enabled?: boolean;
    /**
     * good, failing, slow or recovering
     */
    health?: string;
    why?: string | null;
    zone?: string;
    /**
     * the used share of each known quota
     */
    load?: Record<string, number>;
};
export declare class HealthPanel {
    #private;
    /** @param {import("./broker.js").Broker} broker */
    constructor(broker: import("./broker.js").Broker);
    /** @param {boolean} visible */
    setVisible(visible: boolean): void;
}
