"""What tests ask of a page, in whatever engine: scripts, waits, and what stands in it."""

import json
from abc import ABC, abstractmethod
from typing import Any

__all__ = ["AGENT_SAID", "KEEP_PLANS", "USER_SAID", "ScriptPage", "find", "real_faults", "waiting"]

USER_SAID = "document.querySelector('.line[data-speaker=user][data-final=true]')"
AGENT_SAID = "document.querySelector('.line[data-speaker=assistant][data-final=true]')"
"""The first words of each, as the demo page shows them once they are final."""

KEEP_PLANS = """
(() => {
  window.__plans = [];
  const real = window.fetch;
  window.fetch = async (...request) => {
    const answer = await real(...request);
    if (String(request[0]).endsWith("/realtime/token") && answer.ok) __plans.push(await answer.clone().json());
    return answer;
  };
})()
"""
"""An expression that a page runs first: `__plans` are then the plans that it got."""

_LATE = "\0late"


class ScriptPage(ABC):
    """A page that runs scripts. `complaints` collects what its console and its policy complain of."""

    complaints: list[str]

    @abstractmethod
    async def run(self, expression: str, *, user_gesture: bool = False) -> Any:
        """The JSON value of an expression; a promise is awaited. Raises ScriptError."""

    @abstractmethod
    async def goto(self, url: str) -> None:
        """Loads `url` to its end."""

    @abstractmethod
    async def wait_for(self, condition: str, timeout_s: float = 10) -> Any:
        """The first truthy value of an expression. Raises TimeoutError with the page's complaints."""

    @property
    def faults(self) -> list[str]:
        """What is complained of, but for an icon that is not there, and sound that a busy machine begins late."""
        return real_faults(self.complaints)

    def unless_late(self, value: Any, condition: str, timeout_s: float) -> Any:
        """What a script of `waiting` gave. Raises TimeoutError."""
        if value == _LATE:
            raise TimeoutError(f"not within {timeout_s} s: {condition}; the page says {self.complaints}")
        return value

    async def text(self, test_id: str) -> str:
        return str(await self.run(f"{find(test_id)}.textContent.trim()"))

    async def wait_for_text(self, test_id: str, expected: str, timeout_s: float = 10) -> None:
        """Waits until the element's whole text is `expected`."""
        await self.wait_for(f"{find(test_id)}.textContent.trim() === {json.dumps(expected)}", timeout_s)


def real_faults(complaints: list[str]) -> list[str]:
    return [line for line in complaints if "favicon" not in line and "without a part of the sound" not in line]


def waiting(condition: str, timeout_s: float) -> str:
    """The expression of a promise: of the first truthy value of `condition`, for `ScriptPage.unless_late`."""
    return f"""new Promise((resolve, reject) => {{
        const end = performance.now() + {timeout_s * 1000};
        const look = () => {{
            let value;
            try {{ value = {condition}; }} catch (error) {{ return reject(error); }}
            if (value) return resolve(value);
            if (performance.now() > end) return resolve({json.dumps(_LATE)});
            setTimeout(look, 10);
        }};
        look();
    }})"""


def find(test_id: str) -> str:
    """The expression of the element that has this test id."""
    return f"document.querySelector({json.dumps(f'[data-testid={test_id}]')})"
