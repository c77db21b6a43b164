// npm `openai` on behalf of a WebRTC stack: hands in an offer, with a session or without, and hangs up.
import OpenAI from "openai";

export async function talk({ http, openaiPath, key, model, offer, withSession }) {
  const client = new OpenAI({ baseURL: http + openaiPath, apiKey: key, maxRetries: 0 });
  const session = withSession ? { session: { type: "realtime", model } } : {};
  const answer = await client.realtime.calls.create({ sdp: offer, ...session });
  const callId = answer.headers.get("location").split("/").pop();
  await client.realtime.calls.hangup(callId);
  return { status: answer.status, sdp: await answer.text() };
}
