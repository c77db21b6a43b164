/** Draws the loudness of the last seconds: the user's voice above the line, the agent's below. */
export declare class Meter {
    #private;
    /** @param {HTMLCanvasElement} canvas */
    constructor(canvas: HTMLCanvasElement);
    /** @param {{input: number, output: number}} level each from 0 to 1 */
    add(level: {
        input: number;
        output: number;
    }): void;
}
