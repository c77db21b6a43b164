// npm `@openai/agents-realtime` by WebSocket, with its own defaults, in Node and in a browser.
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";
import { TalkLog, audioChunks, historyWords } from "./talk_log.mjs";

export async function talk(setup) {
  const url = `${setup.http.replace(/^http/, "ws")}${setup.openaiPath}/realtime?model=${setup.model}`;
  const agent = new RealtimeAgent({ name: "Assistant", instructions: "You are a pirate." });
  const session = new RealtimeSession(agent, { transport: new OpenAIRealtimeWebSocket({ url }), model: setup.model });
  const log = new TalkLog();
  let audioBytes = 0;
  session.transport.on("*", (event) => log.add(event));
  session.on("audio", (event) => (audioBytes += event.data.byteLength));
  session.on("error", (error) => log.fail(error));
  await session.connect({ apiKey: setup.key });
  await log.until("session.created");
  await log.until("session.updated");
  for (const chunk of audioChunks(setup.said)) session.sendAudio(chunk.buffer);
  await log.untilFirstAnswer();
  await log.until("conversation.item.retrieved"); // the client asks for what was transcribed
  session.sendMessage(setup.typed);
  await log.until("response.done", 2);
  const history = historyWords(session.history);
  session.close();
  return { ...log.report(), audioBytes, history };
}
