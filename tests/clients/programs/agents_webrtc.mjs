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
  const meter = new PeakMeter(audioElement.srcObject);
  await log.untilFirstAnswer();
  session.mute(true);
  session.sendMessage(setup.typed);
  await log.until("response.done", 2);
  await meter.audible();
  const { callId } = transport;
  const history = historyWords(session.history);
  session.close();
  return { ...log.report(), peak: meter.close(), callId, history };
}

/** Measures how loud a stream has been at its loudest, from 0 to 1. */
class PeakMeter {
  #context = new AudioContext();
  #peak = 0;
  #timer;

  constructor(stream) {
    const analyser = this.#context.createAnalyser();
    this.#context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    this.#timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      this.#peak = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), this.#peak);
    }, 20);
  }

  async audible() {
    const end = performance.now() + LIMIT_MS;
    while (this.#peak < AUDIBLE && performance.now() < end) await new Promise((resolve) => setTimeout(resolve, 20));
  }

  /** The peak. The page holds more talks: the meter must not go on in them. */
  close() {
    clearInterval(this.#timer);
    void this.#context.close();
    return this.#peak;
  }
}
