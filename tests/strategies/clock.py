"""A clock that stands still until a test moves it."""


class Clock:
    """Gives `now_s`, as a monotonic clock gives seconds."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s
