"""What the doctor's tests share: settings for a simulated Azure, and a run whose checks are looked up by name."""

import asyncio
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from strategies.credentials import AccessToken
from token_broker.doctor.checks import Check, CheckStatus, Report
from token_broker.doctor.run import run_doctor
from token_broker.settings import Settings

KEY = "simulated-key"
ENTRA_TOKEN = "simulated-entra-token"


def settings_for(base_url: str | None, **values: Any) -> Settings:
    """A broker's settings for a simulated resource with every route; `values` by field name stand above."""
    return Settings(
        **{
            "_env_file": None,
            "endpoint": base_url,
            "key": SecretStr(KEY),
            "project_name": "demo",
            "database_url": SecretStr("sqlite+aiosqlite:///not-there.db"),
            **values,
        }
    )


@dataclass
class Tokens:
    """A source of Entra tokens: gives `token`, hangs, or fails."""

    token: str = ENTRA_TOKEN
    hangs: bool = False
    fails: bool = False
    asked: int = 0

    async def fetch(self) -> AccessToken:
        self.asked += 1
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.fails:
            raise RuntimeError(f"DefaultAzureCredential failed, and quotes {self.token}")
        return AccessToken(SecretStr(self.token), 4_000_000_000)

    async def aclose(self) -> None:
        """Nothing to close."""


async def diagnose(settings: Settings, **options: Any) -> Report:
    """A whole run; what was emitted must be what is reported."""
    told: list[Check] = []
    options = {"connect": False, "url": None, "source": Tokens(fails=True), **options}
    report = await run_doctor(settings, emit=told.append, **options)
    assert report.checks == told
    return report


def named(report: Report, name: str) -> Check:
    """The one check of that name."""
    (check,) = [check for check in report.checks if check.name == name]
    return check


def failed(report: Report) -> list[str]:
    return [check.name for check in report.checks if check.status is CheckStatus.FAILED]
