/** The demo page: a whole talk with `VoiceSession` alone. Start here to build your own. */
export type Events = import("./voice-session.js").VoiceSessionEvents;
