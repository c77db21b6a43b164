"""Events as text and back: JSON, and only what every JSON reader takes. Pure.

Python reads and writes `NaN` and `Infinity`, which are no JSON, and reads `1e999` as the latter. Here neither gets in
or out.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["compact", "parsed"]


def parsed(text: str) -> Any:
    """What JSON `text` says.

    Raises ValueError, also for a number that no JSON has or that is not finite; RecursionError where it is too deep.
    """
    return json.loads(text, parse_constant=_no_constant, parse_float=_finite)


def compact(event: Mapping[str, Any]) -> str:
    """An event as it is sent. Raises ValueError where a number in it is not finite."""
    return json.dumps(event, separators=(",", ":"), allow_nan=False)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number
