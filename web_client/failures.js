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
