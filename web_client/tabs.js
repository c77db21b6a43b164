/** Other tabs of this site that talk at the same time: their voices would end up in this one's microphone. */

const CHANNEL = "voice-session";

/**
 * Says that this tab talks, and listens for others that do.
 * @param {() => void} onOther
 * @param {AbortSignal} signal the talk's end
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
