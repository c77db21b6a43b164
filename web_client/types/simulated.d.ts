/**
 * The demo's switch that breaks one simulated Azure resource and repairs it, so that one sees a talk go on at another one.
 * Only `token-broker demo` serves the routes that it uses; elsewhere it stays hidden.
 */
export declare class ResourceSwitch {
    #private;
    /**
     * @param {string} base  the page's folder at the broker
     * @param {HTMLButtonElement} button
     */
    constructor(base: string, button: HTMLButtonElement);
    /** Shows the button where several resources are simulated. */
    show(): Promise<void>;
    /** @param {string | null} name  the resource that the talk uses */
    uses(name: string | null): void;
}
