"""Runs client programs, one after another, as `run.mjs` does: a request a line on stdin, a report a line on stdout."""

import asyncio
import gc
import importlib
import json
import sys
from typing import Any


async def _report(program: str, setup: dict[str, Any]) -> dict[str, Any]:
    try:
        report: dict[str, Any] = await importlib.import_module(f"tests.clients.programs.{program}").talk(setup)
        return report
    except Exception as error:  # noqa: BLE001  # the tests ask what each client raises
        status, code = getattr(error, "status_code", None), getattr(error, "code", None)
        return {"failure": {"name": type(error).__name__, "message": str(error), "status": status, "code": code}}


async def _reports(program: str, setup: dict[str, Any]) -> Any:
    reports = [await _report(program, {**setup, "key": key}) for key in setup.get("keys", [setup["key"]])]
    return reports if "keys" in setup else reports[0]


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        reports = asyncio.run(_reports(request["program"], request["setup"]))
        gc.collect()  # warns of what the client left open, before the caller reads stderr
        print(json.dumps(reports), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
