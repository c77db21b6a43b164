"""The voices of the preview and of Voice Live, by name: OpenAI's, and the form of Azure Speech's."""

import re

OPENAI_VOICES = frozenset(
    {"alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"},
)
# en-US-GuyNeural, en-US-Ava:DragonHDLatestNeural, zh-CN-liaoning-XiaobeiNeural; the case of a locale is free.
_AZURE_VOICE = re.compile(r"[a-z]{2,3}-[A-Za-z]{2}-[\w-]+(:\w+)?(?<=Neural)")


def is_azure_voice(name: str) -> bool:
    """Whether a voice's name has the form that all of Azure Speech's have."""
    return _AZURE_VOICE.fullmatch(name) is not None


def known_voice(name: str) -> str:
    """The name, if it is an OpenAI voice or has the form of an Azure one."""
    if name in OPENAI_VOICES or is_azure_voice(name):
        return name
    raise ValueError(f"'{name}' is neither an OpenAI voice nor the name of an Azure one")
