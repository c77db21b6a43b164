/**
 * A voice talk from a page, by whatever way works: this module's one class is what pages use.
 *
 *     const session = new VoiceSession({ brokerUrl: "https://voice.example.com", agentId: "elena" });
 *     session.addEventListener("transcript", ({ detail }) => console.log(detail.speaker, detail.text));
 *     button.onclick = () => session.connect();
 *
 * `session-machine.js` decides what comes next; this class performs it.
 */
import { AudioEngine } from "./audio/audio-engine.js";
export type SessionState = "idle" | "requesting" | "connecting" | "live" | "reconnecting" | "ended" | "failed";
export type TransportName = import("./plan.js").TransportName;
export type MachineState = import("./session-machine.js").State;
export type Action = import("./session-machine.js").Action;
export type Failure = import("./session-machine.js").Failure;
export type Transport = import("./transports/transport.js").Transport;
export type Talk = {
    engine: AudioEngine;
    closing: AbortController;
    /**
     * whether `watchOtherTabs` was called
     */
    watchesTabs: boolean;
};
export type VoiceSessionOptions = {
    /**
     * where the broker is, such as `https://voice.example.com`
     */
    brokerUrl: string;
    /**
     * the broker's default agent without it
     */
    agentId?: string;
    /**
     * 16 to 64 of `A-Za-z0-9_-`; the broker makes one without it
     */
    sessionId?: string;
    userId?: string;
    /**
     * the only ones to use; all by default
     */
    transports?: TransportName[];
    /**
     * after so long, a new connection replaces the current one at the next pause; by default
     * 27 minutes, and never for a talk through the broker's proxy, which moves it by itself
     */
    moveAfterMs?: number;
    /**
     * false: the talk is typed and heard, and no microphone is asked for
     */
    microphone?: boolean;
    /**
     * what a typed text does to the answer that runs; `interrupt` by default
     */
    whileAnswering?: "interrupt" | "queue";
};
export type VoiceSessionEvents = {
    state: {
        state: SessionState;
    };
    /**
     *   the current transport, why no better one is used, and the Azure resource that it leads to
     */
    transport: {
        transport: TransportName | null;
        reason: string;
        resource: string | null;
    };
    /**
     *   the broker connects the talk to Azure again: `lost`, `silent`, `expiring`, `quota` or `refused`. The talk stays live
     */
    resuming: {
        reason: string;
        retryAfterMs: number | null;
    };
    /**
     * the talk goes on there
     */
    resumed: {
        resource: string | null;
        upstream: string | null;
        dialect: string | null;
    };
    /**
     * a later one with the same `turnId` replaces it
     */
    transcript: import("./conversation.js").Line;
    /**
     * each from 0 to 1, 20 times a second
     */
    level: {
        input: number;
        output: number;
    };
    /**
     *   `message` says what happened and what to do. Not retryable: the session has given up. `retryAfterMs`: it asks again then.
     */
    error: {
        code: string;
        message: string;
        retryable: boolean;
        retryAfterMs?: number;
    };
};
export declare class VoiceSession extends EventTarget {
    #private;
    /**
     * @param {VoiceSessionOptions} options
     * @throws {TypeError} without a usable `brokerUrl`
     */
    constructor(options: VoiceSessionOptions);
    /**
     * @template {keyof VoiceSessionEvents} Name
     * @overload
     * @param {Name} type
     * @param {(event: CustomEvent<VoiceSessionEvents[Name]>) => void} listener
     * @param {boolean | AddEventListenerOptions} [options]
     * @returns {void}
     */
    /**
     * @overload
     * @param {string} type
     * @param {EventListenerOrEventListenerObject | null} listener
     * @param {boolean | AddEventListenerOptions} [options]
     * @returns {void}
     */
    /**
     * @param {string} type
     * @param {any} listener
     * @param {boolean | AddEventListenerOptions} [options]
     */
    addEventListener<Name extends keyof VoiceSessionEvents>(type: Name, listener: (event: CustomEvent<VoiceSessionEvents[Name]>) => void, options?: boolean | AddEventListenerOptions): void;
    /**
     * @template {keyof VoiceSessionEvents} Name
     * @overload
     * @param {Name} type
     * @param {(event: CustomEvent<VoiceSessionEvents[Name]>) => void} listener
     * @param {boolean | AddEventListenerOptions} [options]
     * @returns {void}
     */
    /**
     * @overload
     * @param {string} type
     * @param {EventListenerOrEventListenerObject | null} listener
     * @param {boolean | AddEventListenerOptions} [options]
     * @returns {void}
     */
    /**
     * @param {string} type
     * @param {any} listener
     * @param {boolean | AddEventListenerOptions} [options]
     */
    addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
    /**
     * @template {keyof VoiceSessionEvents} Name
     * @overload
     * @param {Name} type
     * @param {(event: CustomEvent<VoiceSessionEvents[Name]>) => void} listener
     * @param {boolean | EventListenerOptions} [options]
     * @returns {void}
     */
    /**
     * @overload
     * @param {string} type
     * @param {EventListenerOrEventListenerObject | null} listener
     * @param {boolean | EventListenerOptions} [options]
     * @returns {void}
     */
    /**
     * @param {string} type
     * @param {any} listener
     * @param {boolean | EventListenerOptions} [options]
     */
    removeEventListener<Name extends keyof VoiceSessionEvents>(type: Name, listener: (event: CustomEvent<VoiceSessionEvents[Name]>) => void, options?: boolean | EventListenerOptions): void;
    /**
     * @template {keyof VoiceSessionEvents} Name
     * @overload
     * @param {Name} type
     * @param {(event: CustomEvent<VoiceSessionEvents[Name]>) => void} listener
     * @param {boolean | EventListenerOptions} [options]
     * @returns {void}
     */
    /**
     * @overload
     * @param {string} type
     * @param {EventListenerOrEventListenerObject | null} listener
     * @param {boolean | EventListenerOptions} [options]
     * @returns {void}
     */
    /**
     * @param {string} type
     * @param {any} listener
     * @param {boolean | EventListenerOptions} [options]
     */
    removeEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | EventListenerOptions): void;
    /** @returns {SessionState} */
    get state(): SessionState;
    /** The transport that is used or being tried; null without one. */
    get transport(): import("./plan.js").TransportName | null;
    /** The name of the Azure resource that the talk uses; null where the broker names none. */
    get resource(): string | null;
    /** The session's id, once the broker has assigned it. */
    get sessionId(): string | null;
    get agentId(): string | null;
    get muted(): boolean;
    /**
     * Starts a talk: asks for the microphone, then for a plan, and tries its connections. Must be called from a click.
     * @returns {Promise<void>} resolves when the talk is live; rejects with an Error with a `code` where it fails
     */
    connect(): Promise<void>;
    /** Hangs up, and releases the microphone. Resolves when the last turns are acknowledged, or after half a second. */
    disconnect(): Promise<void>;
    /**
     * Sends a typed message, and asks for its answer. An answer that runs is stopped first, or heard to its end where the
     * option `whileAnswering` is `queue`. A text whose answer a lost connection took away is asked about again.
     * @param {string} text at most 60,000 bytes of UTF-8
     * @throws {DOMException} InvalidStateError where the talk is not live
     * @throws {Error} with the code `text_too_long`
     */
    sendText(text: string): void;
    /** Stops the answer. */
    interrupt(): void;
    /** @param {boolean} muted */
    setMuted(muted: boolean): void;
    /**
     * Switches to another agent in the same session. An `error` says where that fails; the talk goes on with the one before.
     * @param {string} agentId
     */
    switchAgent(agentId: string): void;
}
