/** What the broker's close codes mean to a page, and Azure's where the socket leads straight there. */

/** @typedef {import("../session-machine.js").Failure} Failure */

/** @type {Record<number, Failure>} */
const FAILURES = {
  1000: { code: "session_limit", message: "The talk has reached its longest time; it goes on in a new one." },
  1001: { code: "session_limit", message: "Azure ended the session; it goes on in a new one." },
  1009: { code: "socket_closed", message: "A message was too large; the talk goes on in a new connection." },
  4400: { code: "refused", reportAs: "bad_request", message: "This page's version does not fit the voice service's. Reload the page.", fatal: true },
  4401: { code: "ticket_spent", message: "The ticket was used or has expired." },
  4403: { code: "refused", reportAs: "origin_refused", message: "This page's address may not use the voice service. Its operator can allow it.", fatal: true },
  4408: { code: "azure_dropped", message: "Azure did not answer in time." },
  4410: { code: "not_reading", message: "The network was too slow for the answer." },
  4429: { code: "refused", reportAs: "too_many_sessions", message: "Too many talks are open. End another one, then press Talk again.", fatal: true },
  4502: { code: "azure_dropped", message: "Azure ended the connection." },
  4503: { code: "draining", message: "The voice service is being renewed." },
};
/** The reason with which the broker closes a talk (1000) that its agent has ended: nobody wants it back. */
const ENDED_BY_AGENT = "the agent has ended the talk";
/** @type {Failure} */
const ENDED = { code: "ended_by_agent", message: "The agent has ended the talk.", fatal: true };

/** The network, or whatever else closes a socket without saying why. @type {Failure} */
export const NETWORK = { code: "socket_closed", message: "The connection to the voice service broke off." };
/** Azure's session has reached its end. @type {Failure} */
export const EXPIRED = FAILURES[1001];

/**
 * @param {{code: number, reason: string}} close
 * @returns {Failure}
 */
export function failureOf({ code, reason }) {
  return reason === ENDED_BY_AGENT ? ENDED : (FAILURES[code] ?? NETWORK);
}
