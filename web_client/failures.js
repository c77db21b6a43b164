/** Failures outside of a connection, as events of the session machine. */

import { MicrophoneError } from "./audio/microphone.js";
import { BrokerError } from "./broker.js";

/** @typedef {import("./session-machine.js").Failure} Failure */

/**
 * The event for a plan request that failed: for want of a microphone, or of a plan.
 * @param {unknown} error
 * @returns {import("./session-machine.js").Event}
 */
export function planFailed(error) {
  if (error instanceof MicrophoneError) {
    return { type: "microphone_failed", failure: { code: "refused", reportAs: error.code, message: error.message } };
  }
  if (!(error instanceof BrokerError)) return { type: "plan_failed", failure: pageFault(error) };
  const { code, message, retryable, retryAfterMs } = error;
  return { type: "plan_failed", failure: { code: "plan_failed", reportAs: code, message, fatal: !retryable, retryAfterMs } };
}

/** What a browser without these lacks has no other way. */
const NEEDED = ["fetch", "AbortController", "CustomEvent", "TextEncoder", "URL"];

/** @returns {Failure | null} where the browser is too old for a talk by any transport */
export function tooOld() {
  const lacks = (/** @type {string} */ name) => !(name in globalThis);
  const hasNoWay = lacks("WebSocket") && lacks("RTCPeerConnection");
  // `URL.canParse` is the youngest of what the modules call without looking.
  const isYoung = ![...NEEDED, "crypto"].some(lacks) && "canParse" in URL;
  if (isYoung && !hasNoWay) return null;
  const message = "This browser is too old to talk. Update it, or use another one.";
  return { code: "refused", reportAs: "browser_too_old", message, fatal: true };
}

/**
 * A failure in the page's own code. Another connection may not have it; a reload may repair it.
 * @param {unknown} error
 * @returns {Failure}
 */
export function pageFault(error) {
  console.error(error);
  return { code: "plan_failed", reportAs: "page_fault", message: "Something in this page went wrong. Reload it." };
}

/**
 * @param {string} code
 * @param {string} message
 */
export function errorWithCode(code, message) {
  return Object.assign(new Error(message), { code });
}
