"""Python `openai`, the plain class or Azure's: mints where it is asked to, and talks on the realtime socket."""

from typing import Any, cast

import openai

from tests.clients.programs.heard import Heard, chunks, hold_talks, typed

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


async def _talk(setup: dict[str, Any]) -> dict[str, Any]:
    key = await _mint(setup) if setup["mints"] else setup["key"]
    async with (
        _client(setup, key) as client,
        client.realtime.connect(model=setup["model"], max_retries=0) as connection,
    ):
        heard = Heard(aiter(connection))
        await heard.until("session.created")
        await connection.session.update(session=cast("Any", setup["session"]))
        await heard.until("session.updated")
        for audio in chunks(setup["said"]):
            await connection.input_audio_buffer.append(audio=audio)
        await heard.spoken()
        await connection.conversation.item.create(item=cast("Any", typed(setup["typed"])))
        await connection.response.create()
        await heard.until("response.done", count=2)
    return heard.report() | {"token": key}


if __name__ == "__main__":
    hold_talks(_talk)
