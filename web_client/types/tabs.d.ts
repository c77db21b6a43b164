/** Other tabs of this site that talk at the same time: their voices would end up in this one's microphone. */
/**
 * Says that this tab talks, and listens for others that do.
 * @param {() => void} onOther
 * @param {AbortSignal} signal the talk's end
 */
export declare function watchOtherTabs(onOther: () => void, signal: AbortSignal): void;
