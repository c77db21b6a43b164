// npm `openai`: mints where it is asked to, and talks on whichever of its sockets `open` gives.
import OpenAI, { AzureOpenAI } from "openai";
import { Heard, base64Chunks, typed } from "./heard.mjs";

const AZURE_API_VERSION = "2025-10-01";

/** `open(client, model)` makes the socket; `setup` is the test's: see support/setups.py. */
export async function openaiTalk(setup, open) {
  const mintedKey = setup.mints ? await mint(client(setup, setup.http, setup.key), setup) : setup.key;
  const socket = await open(client(setup, setup.https, mintedKey), setup.model);
  const heard = new Heard();
  socket.on("event", (event) => heard.note(event));
  socket.on("error", (error) => heard.fail(error));
  await heard.until("session.created");
  socket.send({ type: "session.update", session: setup.session });
  await heard.until("session.updated");
  for (const audio of base64Chunks(setup.said)) socket.send({ type: "input_audio_buffer.append", audio });
  await heard.spoken();
  socket.send({ type: "conversation.item.create", item: typed(setup.typed) });
  socket.send({ type: "response.create" });
  await heard.until("response.done", 2);
  socket.close();
  return { ...heard.report(), token: mintedKey };
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
