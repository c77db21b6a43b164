// npm `@openai/agents-realtime` by WebSocket, with its own defaults, in Node and in a browser.
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";
import { Heard, chunks, told } from "./heard.mjs";

export async function talk(setup) {
  const url = `${setup.http.replace(/^http/, "ws")}${setup.openaiPath}/realtime?model=${setup.model}`;
  const agent = new RealtimeAgent({ name: "Assistant", instructions: "You are a pirate." });
  const session = new RealtimeSession(agent, { transport: new OpenAIRealtimeWebSocket({ url }), model: setup.model });
  const heard = new Heard();
  let audioBytes = 0;
  session.transport.on("*", (event) => heard.note(event));
  session.on("audio", (event) => (audioBytes += event.data.byteLength));
  session.on("error", (error) => heard.fail(error));
  await session.connect({ apiKey: setup.key });
  await heard.until("session.created");
  await heard.until("session.updated");
  for (const chunk of chunks(setup.said)) session.sendAudio(chunk.buffer);
  await heard.spoken();
  await heard.until("conversation.item.retrieved"); // the client asks for what was transcribed
  session.sendMessage(setup.typed);
  await heard.until("response.done", 2);
  const history = told(session.history);
  session.close();
  return { ...heard.report(), audioBytes, history };
}
