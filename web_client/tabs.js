/** Finds other tabs of this site that talk at the same time: each one's microphone would pick up the other's agent. */

const CHANNEL = "voice-session";

/**
 * Announces this tab's talk, and calls `onOther` for each other tab that talks.
 * @param {() => void} onOther
 * @param {AbortSignal} signal aborted at the end of the talk
 */
export function watchOtherTabs(onOther, signal) {
  let channel;
  try {
    channel = new BroadcastChannel(CHANNEL);
  } catch {
    return; // old browsers lack it, and some policies forbid it: a warning less
  }
  channel.onmessage = ({ data }) => {
    if (data === "probe") channel.postMessage("present");
    onOther();
  };
  channel.postMessage("probe");
  signal.addEventListener("abort", () => channel.close());
}
