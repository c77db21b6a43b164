// npm `@openai/agents-realtime` with a tool of its own, at an agent that has this tool and others.
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { z } from "zod";
import { TalkLog } from "./talk_log.mjs";

export async function talk(setup) {
  const url = `${setup.http.replace(/^http/, "ws")}${setup.openaiPath}/realtime?model=${setup.model}`;
  const called = [];
  const map = tool({
    name: "map",
    description: "Shows a map.",
    parameters: z.object({ place: z.string() }),
    execute: ({ place }) => (called.push(place), `shown: ${place}`),
  });
  const agent = new RealtimeAgent({ name: "Assistant", instructions: "You are a pirate.", tools: [map] });
  const session = new RealtimeSession(agent, { transport: new OpenAIRealtimeWebSocket({ url }), model: setup.model });
  const log = new TalkLog();
  session.transport.on("*", (event) => log.add(event));
  session.on("error", (error) => log.fail(error));
  await session.connect({ apiKey: setup.key });
  await log.until("session.created");
  await log.until("session.updated");
  session.sendMessage("[call ok {}]");
  await log.until("response.done", 2);
  session.sendMessage('[call map {"place":"Rome"}] [call ok {}]');
  await log.until("response.done", 4);
  session.sendMessage("Thanks.");
  await log.until("response.done", 5);
  session.close();
  return { ...log.report(), called };
}
