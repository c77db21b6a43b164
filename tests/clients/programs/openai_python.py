"""Python `openai`, the plain class or Azure's: mints where it is asked to, and talks on the realtime socket."""

from typing import Any, cast

import openai

from tests.clients.programs.talk_log import TalkLog, audio_chunks, text_message

_AZURE_API_VERSION = "2025-04-01-preview"


def _client(setup: dict[str, Any], key: str) -> openai.AsyncOpenAI:
    http, sockets = setup["http"], setup["http"].replace("http", "ws", 1)
    if setup["azure"]:
        # Azure's class dials wss: unless it is told where sockets are.
        return openai.AsyncAzureOpenAI(
            azure_endpoint=http,
            websocket_base_url=f"{sockets}/openai",
            api_key=key,
            api_version=_AZURE_API_VERSION,
            max_retries=0,
        )
    return openai.AsyncOpenAI(base_url=http + setup["openaiPath"], api_key=key, max_retries=0)


async def _mint(setup: dict[str, Any]) -> str:
    async with _client(setup, setup["key"]) as client:
        minted = await client.realtime.client_secrets.create(
            session={"type": "realtime", "model": setup["model"]},
            expires_after={"anchor": "created_at", "seconds": 60},
        )
    return minted.value


async def talk(setup: dict[str, Any]) -> dict[str, Any]:
    key = await _mint(setup) if setup["mints"] else setup["key"]
    async with (
        _client(setup, key) as client,
        client.realtime.connect(model=setup["model"], max_retries=0) as connection,
    ):
        log = TalkLog(aiter(connection))
        await log.until("session.created")
        await connection.session.update(session=cast("Any", setup["session"]))
        await log.until("session.updated")
        for audio in audio_chunks(setup["said"]):
            await connection.input_audio_buffer.append(audio=audio)
        await log.until_first_answer()
        await connection.conversation.item.create(item=cast("Any", text_message(setup["typed"])))
        await connection.response.create()
        await log.until("response.done", count=2)
    return log.report() | {"token": key}
