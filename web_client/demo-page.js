/** What the demo page needs of the browser and of the platform that serves it, beside the talk. */

const PROBE_MS = 5_000;
/** Below this height, as with an open keyboard or on a phone that lies, the meter gives way to the text box. */
const SHORT_PX = 480;
const NEWEST_EVENTS = 12;

/**
 * Keeps the page as tall as what is visible of it: a phone's keyboard covers the page, and only `visualViewport` tells.
 * @param {HTMLElement} body
 */
export function fitViewport(body) {
  const view = globalThis.visualViewport;
  if (!view) return;
  const fit = () => {
    if (view.scale > 1.01) return; // somebody has zoomed in, and scrolls by hand
    body.style.setProperty("--height", `${Math.round(view.height)}px`);
    body.style.setProperty("--top", `${Math.round(view.offsetTop)}px`);
    body.toggleAttribute("data-short", view.height < SHORT_PX);
  };
  view.addEventListener("resize", fit);
  view.addEventListener("scroll", fit);
  fit();
}

/**
 * Where a user signs in: at the platform in front of the broker (Easy Auth), if there is one. The page holds no token:
 * the platform keeps a cookie, and brings the user back.
 * @returns {Promise<string | null>} the address to go to; null where nobody has set a sign-in up
 */
export async function signInAddress() {
  const found = await fetch("/.auth/me", { signal: AbortSignal.timeout(PROBE_MS) }).catch(() => null);
  if (!found || found.status === 404 || found.status >= 500) return null;
  const back = encodeURIComponent(location.pathname + location.search);
  return `/.auth/login/aad?post_login_redirect_uri=${back}`;
}

/** The newest kinds of events of a talk, for engineers. Repetitions in a row are counted. */
export class EventList {
  #list;
  #last = "";
  #times = 0;

  /** @param {HTMLElement} list */
  constructor(list) {
    this.#list = list;
  }

  /** @param {string} type */
  add(type) {
    this.#times = type === this.#last ? this.#times + 1 : 1;
    this.#last = type;
    if (this.#times === 1) this.#list.prepend(document.createElement("li"));
    const newest = /** @type {Element} */ (this.#list.firstElementChild);
    newest.textContent = this.#times === 1 ? type : `${type} × ${this.#times}`;
    while (this.#list.childElementCount > NEWEST_EVENTS) this.#list.lastElementChild?.remove();
  }
}
