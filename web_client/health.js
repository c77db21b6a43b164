/** The Health tab: draws `/status`, with the latencies of the last ten minutes. */

/**
 * @typedef {object} StrategyStatus  A strategy in `/status`; every field may be missing.
 * @property {string} name
 * @property {string | null} [resource]  the Azure resource that it asks; none for the proxy
 * @property {string} [breaker]  closed, open or half_open; missing for a strategy that can't fail
 * @property {string} [capability]  unknown, available, missing or misconfigured
 * @property {string | null} [why]  the breaker is open, and until when
 * @property {string | null} [last_outcome]
 * @property {number | null} [last_ago_s]
 * @property {number} [attempts]
 * @property {number} [successes]
 * @property {Record<string, number | null>} [latency_ms]
 *
 * @typedef {object} ResourceStatus  An Azure resource in `/status`.
 * @property {string} name
 * @property {boolean} [enabled]
 * @property {string} [health]  good, failing, slow or recovering
 * @property {string | null} [why]
 * @property {string} [zone]
 * @property {Record<string, number>} [load]  the used share of each known quota
 */

const POLL_MS = 5_000;
const LATENCIES_KEPT = 120; // ten minutes of polls
const NO_FIGURES =
  "This broker shows its figures only with its BROKER_METRICS_TOKEN: request GET /status with it as Bearer token, or open the dashboard that has it.";
const SVG = "http://www.w3.org/2000/svg";

/** A strategy's condition and its colour, by capability or breaker. @type {Record<string, [string, string]>} */
const CONDITIONS = {
  half_open: ["probing", "warn"],
  missing: ["not there", "idle"],
  misconfigured: ["misconfigured", "bad"],
  open: ["paused", "bad"],
  available: ["working", "good"],
  unknown: ["not asked yet", "idle"],
};

/** A resource's condition and its colour. @type {Record<string, [string, string]>} */
const HEALTH = {
  good: ["working", "good"],
  recovering: ["recovering", "warn"],
  slow: ["slow", "warn"],
  failing: ["failing", "bad"],
  disabled: ["taken out", "idle"],
};

export class HealthPanel {
  #broker;
  #visible = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** Latencies by strategy and resource, oldest first. @type {Map<string, number[]>} */
  #latencies = new Map();

  /** @param {import("./broker.js").Broker} broker */
  constructor(broker) {
    this.#broker = broker;
    document.addEventListener("visibilitychange", () => this.#schedule(0));
  }

  /** @param {boolean} visible */
  setVisible(visible) {
    this.#visible = visible;
    this.#schedule(0);
  }

  /** @param {number} ms */
  #schedule(ms) {
    clearTimeout(this.#timer);
    if (this.#visible && !document.hidden) this.#timer = setTimeout(() => void this.#refresh(), ms);
  }

  async #refresh() {
    const notice = find("health-notice");
    try {
      const status = await this.#broker.status();
      this.#draw(status);
      notice.textContent = NO_FIGURES;
      notice.hidden = isFull(status);
    } catch (error) {
      notice.textContent = error instanceof Error ? error.message : "The status can't be read.";
      notice.hidden = false;
    }
    this.#schedule(POLL_MS);
  }

  /** @param {any} status */
  #draw(status) {
    const strategies = /** @type {StrategyStatus[]} */ (isFull(status) ? status.strategies : []);
    const resources = /** @type {ResourceStatus[]} */ (status.resources ?? []);
    find("figures").replaceChildren(...figures(status));
    find("resources").replaceChildren(...resources.map(resourceRow));
    find("resources-card").hidden = resources.length < 2;
    const several = resources.length > 1;
    find("strategies").replaceChildren(...strategies.map((one) => this.#strategy(several ? one : { ...one, resource: null })));
    find("health-note").textContent = footnote(status);
  }

  /** @param {StrategyStatus} strategy */
  #strategy(strategy) {
    const { name, resource, attempts = 0, successes = 0, latency_ms: latency = {} } = strategy;
    const key = `${resource ?? ""} ${name}`;
    const median = latency.p50 ?? null;
    const history = this.#latencies.get(key) ?? [];
    if (median !== null) history.push(median);
    this.#latencies.set(key, history.slice(-LATENCIES_KEPT));
    const row = document.createElement("li");
    row.append(
      block("", [heading(strategy), block("says", [describe(strategy)], "p")]),
      rate(attempts, successes),
      block("spark", [sparkline(this.#latencies.get(key) ?? []), latencyText(median, latency.p95 ?? null)]),
    );
    return row;
  }
}

/**
 * Whether it is the whole status, and not the part that is public.
 * @param {any} status
 */
function isFull(status) {
  return Array.isArray(status.strategies);
}

/** @param {any} status */
function figures(status) {
  const { slo = {}, outbox = {} } = status;
  const wait = status.relay?.turn_latency_ms;
  const talks = figure("Talks open", count(status.active_sessions), "");
  if (!isFull(status)) return [talks];
  return [
    figure("Usable plans", percent(slo.ratio), slo.aim ? `aim ${percent(slo.aim)}` : ""),
    ...(slo.talks ? [figure("Talks connected", percent(slo.talks.ratio), slo.talks.asked ? `of ${count(slo.talks.asked)}` : "")] : []),
    talks,
    ...(typeof wait?.p50 === "number" ? [figure("First sound of an answer", latencyText(wait.p50, null), waitText(wait.p95))] : []),
    figure("Turns waiting", count(outbox.queued), age(outbox.oldest_age_s)),
    figure("Turns kept", count(outbox.delivered), outbox.dead ? `${count(outbox.dead)} dead letters` : ""),
  ];
}

/** @param {unknown} p95 */
function waitText(p95) {
  return typeof p95 === "number" ? `p95 ${latencyText(p95, null)}, once the user stops` : "";
}

/**
 * @param {string} name
 * @param {string} value
 * @param {string} more
 */
function figure(name, value, more) {
  const pair = document.createElement("div");
  pair.append(block("", [name], "dt"), block("", [value, block("", [more], "small")], "dd"));
  return pair;
}

/** @param {ResourceStatus} resource */
function resourceRow({ name, enabled = true, health = "good", why, zone, load = {} }) {
  const [label, tone] = HEALTH[enabled ? health : "disabled"] ?? [words(health), "idle"];
  const pill = block("pill", [label], "span");
  pill.dataset.tone = tone;
  const row = document.createElement("li");
  const used = Object.entries(load).map(([quota, share]) => `${percent(share)} of ${words(quota)}`);
  row.append(
    block("", [block("name", [name, " ", pill], "p"), block("says", [why ?? ""], "p")]),
    block("rate", [used.join(", ")]),
    block("", [zone ?? ""]),
  );
  return row;
}

/** @param {StrategyStatus} strategy */
function heading({ name, resource, breaker, capability = "unknown" }) {
  const permanent = breaker === "open" && capability in CONDITIONS && capability !== "available" && capability !== "unknown";
  const condition = breaker === undefined ? ["always there", "good"] : CONDITIONS[breaker === "closed" || permanent ? capability : breaker];
  const [label, tone] = condition ?? [words(breaker), "idle"];
  const pill = block("pill", [label], "span");
  pill.dataset.tone = tone;
  return block("name", [resource ? `${resource}: ${words(name)}` : words(name), " ", pill], "p");
}

/** @param {StrategyStatus} strategy */
function describe({ name, why, last_outcome: outcome, last_ago_s: ago }) {
  if (why) return why;
  if (name === "websocket_proxy") return "The fallback: the broker carries the talk itself.";
  if (!outcome) return "";
  return typeof ago === "number" ? `Last: ${words(outcome)}, ${duration(ago)} ago` : `Last: ${words(outcome)}`;
}

/** @param {number} seconds */
function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5_400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3_600)} h`;
}

/**
 * @param {number} attempts
 * @param {number} successes
 */
function rate(attempts, successes) {
  if (attempts === 0) return block("rate", []);
  const bar = document.createElement("progress");
  bar.max = attempts;
  bar.value = successes;
  bar.setAttribute("aria-label", "Success rate");
  const ratio = successes / attempts;
  const element = block("rate", [`${percent(ratio)} of ${count(attempts)}`, bar]);
  element.dataset.tone = ratio > 0.95 ? "good" : ratio > 0.5 ? "warn" : "bad";
  return element;
}

/** @param {number[]} values */
function sparkline(values) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  const top = Math.max(...values, 1);
  const points = values.length === 1 ? [values[0], values[0]] : values;
  const step = 100 / Math.max(1, points.length - 1);
  path.setAttribute("d", points.map((value, index) => `${index ? "L" : "M"}${index * step} ${28 - (26 * value) / top}`).join(""));
  svg.append(path);
  return svg;
}

/**
 * @param {number | null} median
 * @param {number | null} p95
 */
function latencyText(median, p95) {
  if (median === null) return "";
  return p95 === null ? `${Math.round(median)} ms` : `${Math.round(median)} ms, p95 ${Math.round(p95)} ms`;
}

/** @param {any} status */
function footnote(status) {
  const parts = [status.model && `Model ${status.model}`, status.endpoint && `at ${status.endpoint}`];
  const skew = status.clock_skew_s;
  if (typeof skew === "number" && Math.abs(skew) >= 5) parts.push(`the broker's clock is ${Math.round(skew)} s off`);
  return parts.filter(Boolean).join(" · ");
}

/**
 * @param {string} className
 * @param {(string | Node)[]} children
 * @param {string} [tag]
 */
function block(className, children, tag = "div") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** @param {unknown} value */
function percent(value) {
  if (typeof value !== "number") return "–";
  return `${(value * 100).toLocaleString("en", { maximumFractionDigits: value > 0.99 ? 2 : 1 })} %`;
}

/** @param {unknown} value */
function count(value) {
  return typeof value === "number" ? value.toLocaleString("en") : "–";
}

/** @param {unknown} seconds */
function age(seconds) {
  return typeof seconds === "number" && seconds > 0 ? `oldest ${Math.round(seconds)} s` : "";
}

/** @param {string | null | undefined} name */
function words(name) {
  return (name ?? "").replaceAll("_", " ");
}

/** @param {string} id */
function find(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}
