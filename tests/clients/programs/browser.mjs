// Bundled into a page: every client that runs in a browser.
import { talk as agents_webrtc } from "./agents_webrtc.mjs";
import { talk as agents_websocket } from "./agents_websocket.mjs";
import { talk as openai_websocket } from "./openai_websocket.mjs";
import { talk as voicelive } from "./voicelive.mjs";

globalThis.talks = { agents_webrtc, agents_websocket, openai_websocket, voicelive };
