"""The bill of a response, whole or not at all: `@azure/ai-voicelive` throws on half of one. Pure."""

from collections.abc import Mapping
from typing import Any

__all__ = ["with_whole_usage"]

_MODALITIES = ("text_tokens", "audio_tokens", "image_tokens")


def with_whole_usage(response: Mapping[str, Any]) -> dict[str, Any]:
    """The response with its `usage` in all fields; without it where Azure did not tell sums and details.

    Counts that are not told are 0: Voice Live has none for images, and tells no `cached_tokens_details`.
    """
    whole = dict(response)
    if whole.get("usage") is None:
        return whole
    usage = _whole(whole.pop("usage"))
    return whole if usage is None else {**whole, "usage": usage}


def _whole(usage: Any) -> dict[str, Any] | None:
    if not isinstance(usage, dict):
        return None
    spent, gained = usage.get("input_tokens"), usage.get("output_tokens")
    into, out = usage.get("input_token_details"), usage.get("output_token_details")
    if not (isinstance(spent, int) and isinstance(gained, int) and isinstance(into, dict) and isinstance(out, dict)):
        return None
    cached = into.get("cached_tokens_details")
    return {
        **usage,
        "total_tokens": _count(usage, "total_tokens", spent + gained),
        "input_token_details": {
            **into,
            **{name: _count(into, name) for name in ("cached_tokens", *_MODALITIES)},
            "cached_tokens_details": _counts(cached if isinstance(cached, dict) else {}, _MODALITIES),
        },
        "output_token_details": _counts(out, ("text_tokens", "audio_tokens")),
    }


def _counts(counts: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {**counts, **{name: _count(counts, name) for name in names}}


def _count(counts: Mapping[str, Any], name: str, default: int = 0) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else default
