// npm `openai`, its socket on `ws`, for Node.
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { openaiTalk } from "./openai_talk.mjs";

export const talk = (setup) =>
  openaiTalk(setup, (client, model) =>
    setup.azure
      ? OpenAIRealtimeWS.azure(client, { deploymentName: model })
      : new OpenAIRealtimeWS({ model }, client),
  );
