/** What a talk can be asked for, and what it tells; and the check of what a page gives. */

/**
 * @typedef {"idle" | "requesting" | "connecting" | "live" | "reconnecting" | "ended" | "failed"} SessionState
 * @typedef {import("./activity.js").Activity} Activity
 * @typedef {import("./plan.js").TransportName} TransportName
 *
 * @typedef {object} TalkOptions
 * @property {string} brokerUrl  where the broker is, such as `https://voice.example.com`
 * @property {string} [agentId]  the broker's default agent without it
 * @property {string} [sessionId]  16 to 64 of `A-Za-z0-9_-`; the broker makes one without it
 * @property {string} [userId]
 * @property {TransportName[]} [transports]  the only ones to use; all by default
 * @property {number} [moveAfterMs]  after so long, a new connection replaces the current one at the next pause; by default
 *   27 minutes, and never for a talk through the broker's proxy, which moves it by itself
 * @property {boolean} [microphone]  false: the talk is typed and heard, and no microphone is asked for
 * @property {boolean} [pushToTalk]  true: the microphone is sent between `startSpeaking` and `stopSpeaking` alone
 * @property {boolean} [report]  false: what the page measures of the talk is not reported to the broker's metrics
 * @property {"interrupt" | "queue"} [whileAnswering]  what a typed text does to the answer that runs; `interrupt` by default
 *
 * @typedef {TalkOptions & import("./broker.js").BrokerOptions} VoiceSessionOptions
 *
 * @typedef {object} VoiceSessionEvents  The `detail` of each event.
 * @property {{state: SessionState, prompting: boolean}} state  `prompting`: the browser asks the user for the microphone
 * @property {{activity: Activity}} activity  what a live talk does: `listening`, `thinking` or `speaking`; `unheard` while
 *   the microphone is in use elsewhere
 * @property {{transport: TransportName | null, reason: string, resource: string | null}} transport
 *   the current transport, why no better one is used, and the Azure resource that it leads to
 * @property {{agentId: string, before: string}} agent  the talk goes on with another agent
 * @property {{reason: string, retryAfterMs: number | null}} resuming
 *   the broker connects the talk to Azure again: `lost`, `silent`, `expiring`, `quota` or `refused`. The talk stays live
 * @property {{resource: string | null, upstream: string | null, dialect: string | null}} resumed  the talk goes on there
 * @property {import("./conversation.js").Line} transcript  a later one with the same `turnId` replaces it
 * @property {{input: number, output: number}} level  each from 0 to 1, 20 times a second
 * @property {import("./page-tools.js").ToolState} tool  a tool runs, in the page or at the broker
 * @property {{id: string, name: string, args: string, server: string}} approval
 *   an MCP server's tool waits for `approve(id, yes)`, for a minute at most
 * @property {{turnMs: number, from: string}} latency  from the end of the user's speech to the answer's first sound
 * @property {object} event  every event that the peer sends, as it came
 * @property {{code: string, message: string, retryable: boolean, retryAfterMs?: number}} error
 *   `message` says what happened and what to do. Not retryable: the session has given up. `retryAfterMs`: it asks again then.
 */

const OPTIONS = [
  ...["brokerUrl", "agentId", "sessionId", "userId", "transports", "moveAfterMs", "microphone", "pushToTalk", "whileAnswering", "report"],
  ...["getToken", "headers", "credentials", "fetch", "getPlan"],
];

/**
 * Warns of options that there are not.
 * @param {VoiceSessionOptions} options
 * @throws {TypeError} without a usable `brokerUrl`
 */
export function checkOptions(options) {
  const canParse = URL.canParse?.bind(URL) ?? (() => true); // `connect` tells that the browser is too old
  if (typeof options?.brokerUrl !== "string" || !canParse(options.brokerUrl, globalThis.location?.href)) {
    throw new TypeError('VoiceSession: brokerUrl is needed: the broker\'s address, such as "https://voice.example.com".');
  }
  const unknown = Object.keys(options).filter((name) => !OPTIONS.includes(name));
  if (unknown.length > 0) console.warn(`VoiceSession: there is no option ${unknown.join(", ")}; there are ${OPTIONS.join(", ")}.`);
}
