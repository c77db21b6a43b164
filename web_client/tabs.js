/** Finds other tabs of this site that talk at the same time: each one's microphone would pick up the other's agent. */

const CHANNEL = "voice-session";

/**
 * Announces this tab's talk, and calls `onOther` for each other tab that talks.
 * @param {() => void} onOther
 * @param {AbortSignal} signal aborted at the end of the talk
 */
export function watchOtherTabs(onOther, signal) {
  if (typeof BroadcastChannel === "undefined") return;
  const channel = new BroadcastChannel(CHANNEL);
  channel.onmessage = ({ data }) => {
    if (data === "probe") channel.postMessage("present");
    onOther();
  };
  channel.postMessage("probe");
  signal.addEventListener("abort", () => channel.close());
}
