"""Python `azure-ai-voicelive`, with a key or a token credential."""

import time
from typing import Any

from azure.ai.voicelive import models
from azure.ai.voicelive.aio import connect
from azure.core.credentials import AccessToken, AzureKeyCredential
from azure.core.credentials_async import AsyncTokenCredential

from tests.clients.programs.heard import Heard, chunks, hold_talks

SESSION = models.RequestSession(
    modalities=[models.Modality.TEXT, models.Modality.AUDIO],
    instructions="You are a pirate.",
    voice=models.AzureStandardVoice(name="en-US-Ava:DragonHDLatestNeural"),
    input_audio_format=models.InputAudioFormat.PCM16,
    output_audio_format=models.OutputAudioFormat.PCM16,
    turn_detection=models.ServerVad(threshold=0.6, prefix_padding_ms=300, silence_duration_ms=800),
    input_audio_transcription=models.AudioInputTranscriptionOptions(model="azure-speech"),
)


class _Token(AsyncTokenCredential):
    """A credential that has its token already."""

    def __init__(self, token: str) -> None:
        self._token = AccessToken(token, int(time.time()) + 3600)

    async def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        return self._token

    async def close(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


async def _talk(setup: dict[str, Any]) -> dict[str, Any]:
    credential = AzureKeyCredential(setup["key"]) if setup["credential"] == "key" else _Token(setup["key"])
    async with connect(endpoint=setup["http"], credential=credential, model=setup["model"]) as connection:
        heard = Heard(aiter(connection))
        await heard.until("session.created")
        await connection.session.update(session=SESSION)
        await heard.until("session.updated")
        for audio in chunks(setup["said"]):
            await connection.input_audio_buffer.append(audio=audio)
        await heard.spoken()
        content = models.InputTextContentPart(text=setup["typed"])
        await connection.conversation.item.create(item=models.UserMessageItem(content=[content]))
        await connection.response.create()
        await heard.until("response.done", count=2)
    return heard.report()


if __name__ == "__main__":
    hold_talks(_talk)
