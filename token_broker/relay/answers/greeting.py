"""What asks an agent to speak first. Pure."""

from typing import Any

__all__ = ["greeting_response"]

_TOLD = "The conversation begins, and you speak first. Say this, and then let the user speak: {greeting}"


def greeting_response(greeting: str, instructions: str) -> dict[str, Any]:
    """The `response` of the `response.create` for an agent's greeting; `instructions` are the agent's own."""
    return {
        "instructions": f"{instructions}\n\n{_TOLD.format(greeting=greeting)}".strip(),
        "tool_choice": "none",
    }
