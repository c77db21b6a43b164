// npm `openai`: mints where it is asked to, and talks on whichever of its sockets `open` gives.
import OpenAI, { AzureOpenAI } from "openai";
import { TalkLog, base64Chunks, textMessage } from "./talk_log.mjs";

const AZURE_API_VERSION = "2025-10-01";

/** `open(client, model)` makes the socket; `setup` is the test's: see support/setups.py. */
export async function openaiTalk(setup, open) {
  const mintedKey = setup.mints ? await mint(client(setup, setup.http, setup.key), setup) : setup.key;
  const socket = await open(client(setup, setup.https, mintedKey), setup.model);
  const log = new TalkLog();
  socket.on("event", (event) => log.add(event));
  socket.on("error", (error) => log.fail(error));
  await log.until("session.created");
  socket.send({ type: "session.update", session: setup.session });
  await log.until("session.updated");
  for (const audio of base64Chunks(setup.said)) socket.send({ type: "input_audio_buffer.append", audio });
  await log.untilFirstAnswer();
  socket.send({ type: "conversation.item.create", item: textMessage(setup.typed) });
  socket.send({ type: "response.create" });
  await log.until("response.done", 2);
  socket.close();
  return { ...log.report(), token: mintedKey };
}

function client(setup, server, apiKey) {
  const options = { apiKey, maxRetries: 0, dangerouslyAllowBrowser: setup.inBrowser };
  if (setup.azure) return new AzureOpenAI({ ...options, endpoint: server, apiVersion: AZURE_API_VERSION });
  return new OpenAI({ ...options, baseURL: server + setup.openaiPath });
}

async function mint(openai, setup) {
  const minted = await openai.realtime.clientSecrets.create({
    session: { type: "realtime", model: setup.model },
    expires_after: { anchor: "created_at", seconds: 60 },
  });
  if (!minted.value.startsWith("ek_") || minted.expires_at * 1000 < Date.now()) {
    throw new Error("no usable secret was minted");
  }
  return minted.value;
}
