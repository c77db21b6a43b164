/**
 * The demo's switch that breaks one simulated Azure resource and repairs it, so that one sees a talk go on at another one.
 * Only `token-broker demo` serves the routes that it uses; elsewhere it stays hidden.
 */

const CONTROL = "_simulator/resources";
const TIMEOUT_MS = 5_000;
/** The sockets that are open are cut, and nobody listens any more. */
const BROKEN = [
  { match: "/", fault: "cut", at: "now" },
  { match: "/", fault: "refuse" },
];

export class ResourceSwitch {
  #base;
  #button;
  /** @type {string[]} */
  #names = [];
  /** @type {string | null} */
  #used = null;
  /** @type {string | null} */
  #broken = null;

  /**
   * @param {string} base  the page's folder at the broker
   * @param {HTMLButtonElement} button
   */
  constructor(base, button) {
    this.#base = base + CONTROL;
    this.#button = button;
    button.addEventListener("click", () => void this.#toggle());
  }

  /** Shows the button where several resources are simulated. */
  async show() {
    const resources = await this.#ask("", "GET").catch(() => null);
    this.#names = Object.keys(resources ?? {});
    if (this.#names.length < 2) return;
    for (const name of this.#names) {
      const faults = await this.#ask(`/${encodeURIComponent(name)}/faults`, "GET").catch(() => []);
      if (Array.isArray(faults) && faults.length > 0) this.#broken = name; // by an earlier visit
    }
    this.#draw();
    this.#button.hidden = false;
  }

  /** @param {string | null} name  the resource that the talk uses */
  uses(name) {
    this.#used = name;
    this.#draw();
  }

  async #toggle() {
    const name = this.#broken ?? this.#target();
    const folder = `/${encodeURIComponent(name)}`;
    this.#button.disabled = true;
    try {
      if (this.#broken) {
        await this.#ask(`${folder}/faults`, "DELETE");
        this.#broken = null;
      } else {
        await this.#ask(`${folder}/faults`, "PUT", BROKEN);
        this.#broken = name;
        await this.#ask(`${folder}/calls`, "DELETE");
      }
    } catch (error) {
      console.error(error);
    } finally {
      this.#button.disabled = false;
      this.#draw();
    }
  }

  /** The one that the talk uses, or would use first. */
  #target() {
    return this.#used !== null && this.#names.includes(this.#used) ? this.#used : this.#names[0];
  }

  #draw() {
    this.#button.textContent = this.#broken ? `Repair ${this.#broken}` : `Break ${this.#target()}`;
    this.#button.setAttribute("aria-pressed", String(this.#broken !== null));
  }

  /**
   * @param {string} path
   * @param {string} method
   * @param {unknown} [body]
   * @returns {Promise<unknown>} the answer's JSON; null where it has none
   */
  async #ask(path, method, body) {
    const headers = body === undefined ? undefined : { "Content-Type": "application/json" };
    const init = { method, headers, body: JSON.stringify(body), signal: AbortSignal.timeout(TIMEOUT_MS) };
    const answer = await fetch(this.#base + path, init);
    if (!answer.ok) throw new Error(`The simulator answered ${answer.status}.`);
    return answer.status === 204 ? null : answer.json();
  }
}
