/** What a live talk does, as a person would say it, and how long the user waits for answers. Pure but for its clock. */

/**
 * @typedef {"listening" | "thinking" | "speaking" | "unheard"} Activity
 * @typedef {import("./events.js").Signal} Signal
 */

export class ActivityWatch {
  /** @type {Activity} */
  activity = "listening";
  /** Nobody speaks, and no answer is made: a good moment for a move. */
  isQuiet = true;
  #onChange;
  #onAnswered;
  #clock;
  #isUnheard = false;
  /** When the user stopped speaking, and no sound of an answer has come since. @type {number | null} */
  #stoppedAtMs = null;
  /** The answer that began last, and the one that the user spoke over: its sound may begin late. */
  #answer = { latest: "", stale: "" };

  /**
   * @param {object} options
   * @param {(activity: Activity) => void} options.onChange
   * @param {(turnMs: number) => void} options.onAnswered  the first sound of an answer to what was spoken
   * @param {() => number} [options.clock]
   */
  constructor({ onChange, onAnswered, clock = () => performance.now() }) {
    this.#onChange = onChange;
    this.#onAnswered = onAnswered;
    this.#clock = clock;
  }

  /** @param {Signal} signal */
  handle(signal) {
    switch (signal.kind) {
      case "speech_started":
        this.#does("listening");
        this.isQuiet = false;
        this.#stoppedAtMs = null;
        this.#answer.stale = this.#answer.latest;
        break;
      case "speech_stopped":
        this.spoken();
        break;
      case "waiting":
        if (this.activity !== "speaking") this.#does("thinking");
        break;
      case "response_started":
        this.#answer.latest = signal.responseId;
        this.isQuiet = false;
        if (this.activity !== "speaking") this.#does("thinking");
        break;
      case "playback_started":
        this.#does("speaking");
        this.isQuiet = false;
        if (!signal.responseId || signal.responseId !== this.#answer.stale) this.#answered();
        break;
      case "playback_stopped":
        this.isQuiet = true;
        this.#does("listening");
        break;
      case "response_done":
        if (signal.status !== "completed") this.#stoppedAtMs = null; // no answer to measure
        if (this.activity === "thinking") this.#does("listening"); // a text, or a call of a tool
    }
  }

  /** The user has spoken, and waits for the answer. */
  spoken() {
    this.#stoppedAtMs = this.#clock();
    this.#does("thinking");
  }

  /** The user has typed, and waits for the answer. */
  typed() {
    this.#does("thinking");
  }

  /** The user has stopped the answer: the player of a WebSocket's talk falls silent without a signal. */
  interrupted() {
    if (this.activity !== "speaking") return;
    this.isQuiet = true;
    this.#does("listening");
  }

  /** @param {boolean} isUnheard the microphone is in use elsewhere: nobody listens */
  setUnheard(isUnheard) {
    this.#isUnheard = isUnheard;
    if (this.activity === "listening" || this.activity === "unheard") this.#does("listening");
  }

  /** Nothing goes on: the connection is over. */
  reset() {
    this.activity = this.#isUnheard ? "unheard" : "listening";
    this.isQuiet = true;
    this.#stoppedAtMs = null;
  }

  #answered() {
    if (this.#stoppedAtMs === null) return;
    this.#onAnswered(Math.round(this.#clock() - this.#stoppedAtMs));
    this.#stoppedAtMs = null;
  }

  /** @param {Activity} wanted */
  #does(wanted) {
    const activity = wanted === "listening" && this.#isUnheard ? "unheard" : wanted;
    if (activity === this.activity) return;
    this.activity = activity;
    this.#onChange(activity);
  }
}
