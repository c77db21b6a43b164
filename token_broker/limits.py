"""Limits a principal."""

__all__ = ["RateLimit"]


class RateLimit:
    """So many requests a minute; 0 is off."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute

    def take(self, key: str) -> float | None:
        """None, or the seconds to wait."""
        del key
