// npm `@openai/agents-realtime` by WebRTC, with its own defaults: the microphone speaks, an audio element plays.
import { OpenAIRealtimeWebRTC, RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";
import { TalkLog, historyWords } from "./talk_log.mjs";

const AUDIBLE = 0.05;
const LIMIT_MS = 15_000;

export async function talk(setup) {
  const audioElement = document.createElement("audio");
  const transport = new OpenAIRealtimeWebRTC({ baseUrl: `${setup.http}${setup.openaiPath}/realtime/calls`, audioElement });
  const agent = new RealtimeAgent({ name: "Assistant", instructions: "You are a pirate." });
  const session = new RealtimeSession(agent, { transport, model: setup.model });
  const log = new TalkLog();
  transport.on("*", (event) => log.add(event));
  session.on("error", (error) => log.fail(error));
  await session.connect({ apiKey: setup.key });
  const loudest = listen(audioElement.srcObject);
  await log.untilFirstAnswer();
  session.mute(true);
  session.sendMessage(setup.typed);
  await log.until("response.done", 2);
  await audible(loudest);
  const { callId } = transport;
  const history = historyWords(session.history);
  session.close();
  return { ...log.report(), peak: loudest(), callId, history };
}

/** How loud the stream has been at its loudest, from 0 to 1. */
function listen(stream) {
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  let peak = 0;
  setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    peak = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), peak);
  }, 20);
  return () => peak;
}

async function audible(loudest) {
  const end = performance.now() + LIMIT_MS;
  while (loudest() < AUDIBLE && performance.now() < end) await new Promise((resolve) => setTimeout(resolve, 20));
}
