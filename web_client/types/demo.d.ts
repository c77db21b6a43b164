/** The page that the broker serves: a whole talk with nothing but `VoiceSession`. Start here to build your own. */
export type Events = import("./voice-session.js").VoiceSessionEvents;
