/** Draws the loudness of the last seconds: the user's voice above the line, the agent's below. */

const BAR_PX = 4;
const GAP_PX = 3;

export class Meter {
  #canvas;
  /** @type {{input: number, output: number}[]} */
  #history = [];
  #reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
  #dirty = true;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.#request(true)).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#request(true));
    this.#request(true);
  }

  /** @param {{input: number, output: number}} level each from 0 to 1 */
  add(level) {
    // With reduced motion, the current level fills the whole width: its height changes, and nothing scrolls.
    if (this.#reducedMotion.matches) this.#history = [];
    this.#history.push(level);
    if (this.#history.length > 600) this.#history.splice(0, 300);
    this.#request(false);
  }

  /** @param {boolean} force */
  #request(force) {
    if (this.#dirty && !force) return;
    this.#dirty = true;
    requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#dirty = false;
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const scale = devicePixelRatio;
    if (this.#canvas.width !== Math.round(width * scale)) this.#canvas.width = Math.round(width * scale);
    if (this.#canvas.height !== Math.round(height * scale)) this.#canvas.height = Math.round(height * scale);
    const context = this.#canvas.getContext("2d");
    if (!context) return;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    // Read once a frame: reading them for each bar took more CPU than the rest of a talk.
    const style = getComputedStyle(this.#canvas);
    const [yours, agents, line] = ["--you", "--agent", "--line"].map((name) => style.getPropertyValue(name));
    const count = Math.floor(width / (BAR_PX + GAP_PX));
    const middle = height / 2;
    for (let index = 0; index < count; index += 1) {
      const level = this.#reducedMotion.matches ? this.#history.at(-1) : this.#history.at(index - count);
      const x = index * (BAR_PX + GAP_PX);
      const known = level && (this.#reducedMotion.matches || index >= count - this.#history.length);
      bar(context, x, middle - 2, -1, known ? level.input : 0, middle, yours);
      bar(context, x, middle + 2, 1, known ? level.output : 0, middle, agents);
      if (!known || level.input + level.output < 0.02) dot(context, x, middle, line);
    }
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} x
 * @param {number} y
 * @param {1 | -1} direction
 * @param {number} level
 * @param {number} height
 * @param {string} colour
 */
function bar(context, x, y, direction, level, height, colour) {
  const length = level * (height - 4);
  if (length < 1) return;
  context.fillStyle = colour;
  context.beginPath();
  context.roundRect(x, direction > 0 ? y : y - length, BAR_PX, length, BAR_PX / 2);
  context.fill();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} x
 * @param {number} middle
 * @param {string} colour
 */
function dot(context, x, middle, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x + BAR_PX / 2, middle, BAR_PX / 2, 0, 2 * Math.PI);
  context.fill();
}
