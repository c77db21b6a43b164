// npm `openai`, its socket on the runtime's own WebSocket, for browsers and newer Nodes.
import { OpenAIRealtimeWebSocket } from "openai/realtime/websocket";
import { openaiTalk } from "./openai_talk.mjs";

export const talk = (setup) =>
  openaiTalk(setup, (client, model) =>
    setup.azure
      ? OpenAIRealtimeWebSocket.azure(client, { deploymentName: model })
      : new OpenAIRealtimeWebSocket({ model }, client),
  );
