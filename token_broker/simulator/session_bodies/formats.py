"""The words for audio formats in flat sessions."""

from typing import Literal

FlatFormat = Literal["pcm16", "g711_ulaw", "g711_alaw"]

# Voice Live's output. The package's enumeration has three of the rates; its own live tests ask for all
# (docs/azure.md §6.2).
VoiceLiveOutputFormat = Literal[
    "pcm16",
    "pcm16_8000hz",
    "pcm16_16000hz",
    "pcm16_22050hz",
    "pcm16_24000hz",
    "pcm16_44100hz",
    "pcm16_48000hz",
    "g711_ulaw",
    "g711_alaw",
]
