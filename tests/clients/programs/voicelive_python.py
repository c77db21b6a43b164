"""Python `azure-ai-voicelive`, with a key or a token credential."""

import time
from typing import Any

from azure.ai.voicelive import models
from azure.ai.voicelive.aio import connect
from azure.core.credentials import AccessToken, AzureKeyCredential
from azure.core.credentials_async import AsyncTokenCredential

from tests.clients.programs.talk_log import TalkLog, audio_chunks

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


async def talk(setup: dict[str, Any]) -> dict[str, Any]:
    credential = AzureKeyCredential(setup["key"]) if setup["credential"] == "key" else _Token(setup["key"])
    async with connect(endpoint=setup["http"], credential=credential, model=setup["model"]) as connection:
        log = TalkLog(aiter(connection))
        await log.until("session.created")
        await connection.session.update(session=SESSION)
        await log.until("session.updated")
        for audio in audio_chunks(setup["said"]):
            await connection.input_audio_buffer.append(audio=audio)
        await log.until_first_answer()
        content = models.InputTextContentPart(text=setup["typed"])
        await connection.conversation.item.create(item=models.UserMessageItem(content=[content]))
        await connection.response.create()
        await log.until("response.done", count=2)
    return log.report()
