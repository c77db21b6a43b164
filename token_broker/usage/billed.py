"""What Azure says that it bills, read from its events. What it does not say is None, never 0."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["ANSWER_COUNTS", "TRANSCRIPTION_COUNTS", "Counts", "answer_counts", "transcription_counts"]

Counts = dict[str, int | None]
"""Whole numbers by their names in the ledger; None is unknown."""

_MODALITIES = ("text", "audio", "image")
_MOST = 10**9  # more is no count of one answer
ANSWER_COUNTS = (
    "input_tokens",
    "output_tokens",
    *(f"input_{kind}_tokens" for kind in _MODALITIES),
    *(f"cached_{kind}_tokens" for kind in _MODALITIES),
    "output_text_tokens",
    "output_audio_tokens",
)
TRANSCRIPTION_COUNTS = ("transcription_ms", "transcription_input_tokens", "transcription_output_tokens")


def answer_counts(usage: object) -> Counts | None:
    """The tokens of an answer's `usage`, each of `ANSWER_COUNTS`; None where it says nothing.

    A kind of token that is not named is 0 where the others add up to the total, else unknown.
    """
    if not isinstance(usage, Mapping):
        return None
    total_in, total_out = _whole(usage, "input_tokens"), _whole(usage, "output_tokens")
    if total_in is None and total_out is None:
        return None
    inputs, outputs = _part(usage, "input_token_details"), _part(usage, "output_token_details")
    cached = _part(inputs, "cached_tokens_details")
    return {
        "input_tokens": total_in,
        "output_tokens": total_out,
        **{f"input_{kind}_tokens": count for kind, count in _split(inputs, total_in, _MODALITIES).items()},
        **{
            f"cached_{kind}_tokens": count
            for kind, count in _split(cached, _whole(inputs, "cached_tokens"), _MODALITIES).items()
        },
        **{f"output_{kind}_tokens": count for kind, count in _split(outputs, total_out, _MODALITIES[:2]).items()},
    }


def transcription_counts(usage: object) -> Counts | None:
    """What the transcription of one utterance cost, by the second or by tokens; None where Azure does not say."""
    if not isinstance(usage, Mapping):
        return None
    seconds = usage.get("seconds")
    is_time = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < _MOST / 1000
    counts: Counts = {
        "transcription_ms": round(seconds * 1000) if is_time and math.isfinite(seconds) else None,  # type: ignore[operator, arg-type]
        "transcription_input_tokens": _whole(usage, "input_tokens"),
        "transcription_output_tokens": _whole(usage, "output_tokens"),
    }
    return counts if any(count is not None for count in counts.values()) else None


def _split(details: Mapping[str, Any], total: int | None, kinds: tuple[str, ...]) -> Counts:
    counts: Counts = {kind: _whole(details, f"{kind}_tokens") for kind in kinds}
    if total is not None and sum(count or 0 for count in counts.values()) == total:
        counts = {kind: count or 0 for kind, count in counts.items()}
    return counts


def _part(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = of.get(name)
    return part if isinstance(part, Mapping) else {}


def _whole(of: Mapping[str, Any], name: str) -> int | None:
    value = of.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST else None
