/** Finds other tabs of this site that talk at the same time: each one's microphone would pick up the other's agent. */
/**
 * Announces this tab's talk, and calls `onOther` for each other tab that talks.
 * @param {() => void} onOther
 * @param {AbortSignal} signal aborted at the end of the talk
 */
export declare function watchOtherTabs(onOther: () => void, signal: AbortSignal): void;
