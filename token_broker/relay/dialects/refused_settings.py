"""Which fields of a client's `session.update` or `response.create` do not come into force, and why. Pure.

A client of a compatible endpoint takes `session.updated` for a yes. So what its dialect does not have, what is a field
of the other dialect, and what the upstream cannot do is told by an `error` event each.

The agent's own settings are not among them: official clients send instructions, tools and a voice with every session,
and some end their talk at the first error. `session.updated` shows none of these.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from strategies.session_model.agent_settings import CLIENT_MAY_SET, Dialect
from token_broker.relay.dialects import values
from token_broker.relay.dialects.session_settings import RESPONSE_ROWS, SESSION_ROWS, MaySet, Setting, value_at
from token_broker.relay.dialects.shapes import shown_name

__all__ = ["RefusedField", "refused_fields", "unknown_field"]

Event = Mapping[str, Any]

_ROWS: Mapping[str, Sequence[Setting]] = {"session": SESSION_ROWS, "response": RESPONSE_ROWS}
_HOLDERS = {"session.update": "session", "response.create": "response"}
# What GA lacks and the translation expresses in another way.
_EXPRESSED_OTHERWISE = frozenset({"append_input_items", "commit", "input", "max_response_output_tokens"})
_SAME_AS_ABSENT = {"speed": 1, "cancel_previous": False}


@cache
def _agents_own(dialect: Dialect, may_set: MaySet) -> list[tuple[str, ...]]:
    """The paths of what only the agent sets. Voice Live takes instructions beside `response` as well."""
    own = [
        (holder, *path)
        for holder, rows in _ROWS.items()
        for row in rows
        if row.shape_for(may_set) is None and (path := row.path(dialect)) is not None
    ]
    return [*own, ("additional_instructions",)] if dialect == "preview" else own


@dataclass(frozen=True, slots=True)
class RefusedField:
    """A field that does not come into force. `param` is its path in the client's event."""

    code: str
    param: str
    message: str


def unknown_field(param: str, client: Dialect | None) -> RefusedField:
    """A field without a row in the allowlist. Where the client's dialect has it under another name, that is said."""
    holder, _, rest = param.partition(".")
    for row in _ROWS.get(holder, ()):
        if client is not None and ".".join(row.path(_other(client)) or ()) == rest and (path := row.path(client)):
            return _foreign(param, f"{holder}.{'.'.join(path)}")
    return RefusedField("unknown_parameter", param, f"Unknown parameter: '{param}'. It was left out.")


def refused_fields(
    event: Event, unlisted: Iterable[str], *, client: Dialect, upstream: Dialect, may_set: MaySet = CLIENT_MAY_SET
) -> Iterator[RefusedField]:
    """What a client of a compatible endpoint is told about its event, which the allowlist has checked.

    `unlisted` are the paths of fields without a row there.
    """
    for param in unlisted:
        listed = tuple(param.split("."))
        if not any(listed[: len(own)] == own[: len(listed)] for own in _agents_own(client, may_set)):
            yield unknown_field(param, client)
    kind = event.get("type")
    holder = _HOLDERS.get(kind, "") if isinstance(kind, str) else ""
    stated = event.get(holder)
    seen: set[tuple[str, ...]] = set()
    for row in _ROWS.get(holder, ()):
        for dialect in (client, _other(client)):
            path = row.path(dialect)
            if row.shape_for(may_set) is None or path is None or path in seen:
                continue
            if (value := value_at(stated, path)) is values.LEFT_OUT or value is None:
                continue
            seen.add(path)
            param = ".".join((holder, *path))
            own = row.path(client)
            if path != own:
                if client == "preview" and path[-1] in _EXPRESSED_OTHERWISE:
                    continue
                yield _foreign(param, ".".join((holder, *own))) if own else unknown_field(param, None)
            elif row.path(upstream) is None:
                if path[-1] not in _EXPRESSED_OTHERWISE and _SAME_AS_ABSENT.get(path[-1]) != value:
                    message = f"'{param}' was left out: the service behind this endpoint does not have it."
                    yield RefusedField("unsupported_parameter", param, message)
            # The rate alone is part of GA's format: it is no setting of its own there.
            elif row.convert is not values.input_rate_hz and row.converted(value, upstream) is values.LEFT_OUT:
                shown = shown_name(value.get("type") if isinstance(value, dict) else value)
                yield RefusedField("invalid_value", param, f"'{param}' was left out: it may not be {shown} here.")


def _foreign(param: str, own: str) -> RefusedField:
    message = f"Unknown parameter: '{param}'. It was left out: on this endpoint it is '{own}'."
    return RefusedField("unknown_parameter", param, message)


def _other(dialect: Dialect) -> Dialect:
    return "preview" if dialect == "ga" else "ga"
