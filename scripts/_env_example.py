# ruff: noqa: INP001  # a script, no package
"""Prints `.env.example`: every variable of the settings with its default and one line, all commented out."""

from pydantic import SecretStr

from token_broker.settings import Settings

HEAD = """\
# Every variable that the broker reads, with its default. Copy this file to .env and uncomment what you set.
# Made by scripts/env-example from token_broker/settings.py; a test holds the two together.
"""


def render() -> str:
    """The file's whole text."""
    fields = Settings.model_fields.values()
    return HEAD + "".join(
        f"\n# {field.description}\n#{field.alias}={_written(field.get_default())}\n" for field in fields
    )


def _written(default: object) -> str:
    """A default as the environment would have it; nothing where there is none."""
    match default:
        case None:
            return ""
        case SecretStr():
            return default.get_secret_value()
        case tuple():
            return ",".join(map(_written, default))
        case float():
            return f"{default:g}"
    return str(default)


if __name__ == "__main__":
    print(render(), end="")  # noqa: T201  # its whole job
