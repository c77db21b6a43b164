// npm `@azure/ai-voicelive`, with a key or a token credential, in Node and in a browser.
import { VoiceLiveClient } from "@azure/ai-voicelive";
import { AzureKeyCredential } from "@azure/core-auth";
import { TalkLog, audioChunks, textMessage } from "./talk_log.mjs";

const HOUR_MS = 3_600_000;

export async function talk(setup) {
  const session = new VoiceLiveClient(setup.http, credential(setup)).createSession(setup.model);
  const log = new TalkLog();
  session.subscribe({
    onServerEvent: async (event) => log.add(event),
    onError: async ({ error }) => log.fail(error),
  });
  await session.connect();
  await log.until("session.created");
  await session.updateSession({
    modalities: ["text", "audio"],
    instructions: "You are a pirate.",
    voice: { type: "azure-standard", name: "en-US-Ava:DragonHDLatestNeural" },
    inputAudioFormat: "pcm16",
    outputAudioFormat: "pcm16",
    turnDetection: { type: "server_vad", threshold: 0.6, silenceDurationInMs: 800 },
    inputAudioTranscription: { model: "azure-speech" },
  });
  await log.until("session.updated");
  for (const chunk of audioChunks(setup.said)) await session.sendAudio(chunk);
  await log.untilFirstAnswer();
  await session.addConversationItem(textMessage(setup.typed));
  await session.sendEvent({ type: "response.create" });
  await log.until("response.done", 2);
  await session.dispose();
  return log.report();
}

function credential({ credential: kind, key }) {
  if (kind === "key") return new AzureKeyCredential(key);
  return { getToken: async () => ({ token: key, expiresOnTimestamp: Date.now() + HOUR_MS }) };
}
