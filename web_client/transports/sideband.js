/**
 * A GPT-Live call's line to the broker: the calls of the page's tools come over it, and their outputs go back. On the data
 * channel the broker would not hear of an output, and give another one when the tool's time is over.
 */

const ATTACH = "/v1/live/sessions";
const CALLS = /\/(?:api\/v1\/voice\/)?realtime\/calls\/?$/;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8_000;
/** So many connections in a row may bring nothing: then the talk goes on without the page's tools. */
const TRIES = 8;

export class CallSideband {
  #url;
  #protocols;
  #onCall;
  /** @type {WebSocket | null} */
  #socket = null;
  /** Outputs that no connection was there for. @type {string[]} */
  #waiting = [];
  #failures = 0;
  #closed = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /**
   * @param {object} options
   * @param {string} options.url  where the offer went
   * @param {string} options.token  the session's
   * @param {string} options.callId  the broker's name of the call
   * @param {(text: string) => void} options.onCall  gets the events of the model that works for the agent
   */
  constructor({ url, token, callId, onCall }) {
    const attach = new URL(url);
    attach.protocol = attach.protocol.replace("http", "ws");
    attach.pathname = attach.pathname.replace(CALLS, `${ATTACH}/${callId}/attach`);
    this.#url = attach;
    this.#protocols = ["realtime", `ticket.${token}`];
    this.#onCall = onCall;
    this.#open();
  }

  /** @param {object} event  goes out once a connection is there */
  send(event) {
    this.#waiting.push(JSON.stringify(event));
    this.#flush();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
  }

  #open() {
    const socket = new WebSocket(this.#url, this.#protocols);
    this.#socket = socket;
    socket.onopen = () => this.#flush();
    socket.onmessage = ({ data }) => {
      this.#failures = 0;
      if (!this.#closed && typeof data === "string" && data.includes('"response.event"')) this.#onCall(data);
    };
    socket.onclose = () => {
      this.#failures += 1;
      if (this.#closed || this.#failures > TRIES) return;
      const pauseMs = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** this.#failures);
      this.#timer = setTimeout(() => this.#open(), pauseMs);
    };
  }

  #flush() {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    for (const text of this.#waiting.splice(0)) this.#socket.send(text);
  }
}
