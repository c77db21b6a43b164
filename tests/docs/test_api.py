"""docs/api.md names the routes, codes, commands, variables and faults that exist, and no others."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click

from tests.conftest import StartBroker
from tests.observability.test_openapi import ELSEWHERE
from token_broker.cli.main import main
from token_broker.server import close_codes as closing
from token_broker.settings import Settings
from token_broker.simulator.faults.fault_table import Fault

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")


def section(number: str) -> str:
    """The text under that heading, up to the next one of its level."""
    found = re.search(rf"^(#+) {re.escape(number)}\.? .*?\n(.*?)(?=^\1 |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, number
    return found[2]


def rows(number: str) -> Iterator[list[str]]:
    """The cells of each row of its tables, without the header rows."""
    for line in re.findall(r"^\|(?!-)(.*)\|$", section(number), re.MULTILINE)[1:]:
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]


def in_code(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


async def document(start_broker: StartBroker) -> dict[str, Any]:
    broker = await start_broker(None)
    served: dict[str, Any] = (await broker.client.get("/openapi.json")).json()
    return served


async def test_every_path_is_named(start_broker: StartBroker) -> None:
    """A path may stand there without its prefix: §2.2 lists the prefixes."""
    served = await document(start_broker)
    prefixes = ("/api/v1/voice", "/api/v1/memory", "/memory", "/openai/v1", "/openai", "/v1")
    own_way = {"/client/{file}": "/client/", "/docs/{file}": "/docs"}  # how the page writes them
    written = PAGE.replace("{id}", "{session_id}").replace("{Location}", "/realtime/calls/{call_id}")

    def named(path: str) -> bool:
        short = [path.removeprefix(prefix) for prefix in prefixes if path.startswith(prefix)]
        return any(way in written for way in (path, own_way.get(path, path), *short))

    assert [path for path in served["paths"] if not named(path)] == []


async def test_problem_codes_are_those_answered(start_broker: StartBroker) -> None:
    served = await document(start_broker)
    answered = {
        (code, int(status))
        for methods in served["paths"].values()
        for operation in methods.values()
        if isinstance(operation, dict) and "responses" in operation
        for status, response in operation["responses"].items()
        for content in response.get("content", {}).values()
        if "allOf" in content["schema"]
        for code in content["schema"]["allOf"][1]["properties"]["code"]["enum"]
    }
    listed = {(code, int(status)) for codes, status, _ in rows("9") if status.isdecimal() for code in in_code(codes)}
    assert {code for code, _ in listed} - {code for code, _ in answered} <= ELSEWHERE
    assert answered - listed == set()
    assert {code for codes, *_ in rows("9") for code in in_code(codes)} >= ELSEWHERE


def test_close_codes_are_complete() -> None:
    ends_with = {getattr(closing, name) for name in closing.__all__ if isinstance(getattr(closing, name), int)}
    listed = {int(code) for codes, *_ in rows("5.5") for code in codes.split(", ")}
    assert listed == ends_with


def test_commands_are_complete() -> None:
    listed = {cell.strip("`").split()[0] for cell, _ in rows("10")}
    assert listed == set(main.list_commands(click.Context(main)))


def test_named_options_exist() -> None:
    for cell, _ in rows("10"):
        for text in in_code(cell):
            words = text.replace("\\|", "|").replace("[", "").replace("]", "").split()
            command: click.Command | None = main.get_command(click.Context(main), words[0])
            if isinstance(command, click.Group) and not (command.invoke_without_command and words[1].startswith("-")):
                command = command.get_command(click.Context(command), words[1])
            assert command is not None, text
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, text


def test_named_variables_exist() -> None:
    known = {field.alias for field in Settings.model_fields.values()}
    assert set(re.findall(r"\b(?:BROKER|AZURE|ZEP|SIMULATOR)_[A-Z_]*[A-Z]\b", PAGE)) <= known


def test_defaults_are_those_of_the_settings() -> None:
    """Checks defaults that are shown as code or with a unit. Others are described in words."""
    fields = {field.alias: field for field in Settings.model_fields.values()}
    bytes_of = {"KiB": 1024, "MiB": 1024 * 1024}
    wrong = []
    for names, told, _ in rows("1.1"):
        aliases, values = re.findall(r"`([^`]+)`", names), re.findall(r"`([^`]+)`|(\d+) ([KM]iB)", told)
        if len(aliases) != len(values):
            continue
        for alias, (shown, amount, unit) in zip(aliases, values, strict=True):
            value = shown or str(int(amount) * bytes_of[unit])
            default = fields[alias].default
            real = ",".join(default) if isinstance(default, tuple) else str(default)
            if value not in {real, real.removesuffix(".0"), "none" if default is None else real}:
                wrong.append(f"{alias}: {value}, which is {real}")
    assert wrong == []


def test_faults_are_those_of_the_simulator() -> None:
    names = {get_args(kind.model_fields["fault"].annotation)[0] for kind in get_args(get_args(Fault)[0])}
    faults = [cells for cells in rows("11") if len(cells) == 2]  # the other table is of routes
    listed = {name for cell, _ in faults for name in in_code(cell)}
    assert listed == names
