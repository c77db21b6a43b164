"""The API's page for people: an OpenAPI document as HTML, without script."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["render_page"]

Json = Mapping[str, Any]

_CODE = re.compile(r"`([^`]+)`")
_METHODS = ("get", "post", "put", "delete", "x-websocket")


def render_page(document: Json) -> str:
    """The page: a table of contents, each operation, each schema."""
    info = document["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    entries = list(_entries(document))
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>{title}: API</title><link rel="stylesheet" href="/docs/style.css"></head><body>',
            f"<header><h1>{title}</h1>{_text(info['description'])}",
            '<p><a href="/openapi.json">openapi.json</a></p></header>',
            f'<nav aria-label="Contents">{_contents(document, entries)}</nav><main>',
            *(_section(document, entry) for entry in entries),
            '<h2 id="schemas">Schemas</h2>',
            *(_schema_section(name, schema) for name, schema in document["components"]["schemas"].items()),
            "</main></body></html>",
        )
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    """An operation, or a WebSocket's path, with the anchor it has."""

    tag: str
    path: str
    method: str
    described: Json

    @property
    def anchor(self) -> str:
        return str(self.described.get("operationId", "websocket"))


def _entries(document: Json) -> Iterator[_Entry]:
    """By tag, in the document's order."""
    found = [
        _Entry(_tag(described), path, method.removeprefix("x-"), item if method == "x-websocket" else described)
        for path, item in document["paths"].items()
        for method, described in item.items()
        if method in _METHODS
    ]
    for tag in document["tags"]:
        yield from (entry for entry in found if entry.tag == tag["name"])


def _tag(described: Json) -> str:
    return str(described["tag"] if "tag" in described else described["tags"][0])


def _contents(document: Json, entries: list[_Entry]) -> str:
    parts = []
    for tag in document["tags"]:
        links = "".join(
            f'<li><a href="#{entry.anchor}">{_call(entry)}</a></li>' for entry in entries if entry.tag == tag["name"]
        )
        parts.append(f"<h2>{escape(tag['name'])}</h2><ul>{links}</ul>")
    names = "".join(f'<li><a href="#{name}">{name}</a></li>' for name in document["components"]["schemas"])
    return f'{"".join(parts)}<h2><a href="#schemas">Schemas</a></h2><ul>{names}</ul>'


def _call(entry: _Entry) -> str:
    return f'<b class="{entry.method}">{entry.method.upper()}</b> <code>{escape(entry.path)}</code>'


def _section(document: Json, entry: _Entry) -> str:
    described = entry.described
    parts = [
        f'<section id="{entry.anchor}"><h2>{_call(entry)}</h2>',
        f"<p><strong>{escape(described['summary'])}</strong></p>{_text(described['description'])}",
    ]
    if schemes := [name for choice in described.get("security", ()) for name in choice]:
        known = document["components"]["securitySchemes"]
        rows = "".join(f"<li>{_inline(known[name]['description'])}</li>" for name in schemes)
        parts.append(f"<h3>Authentication</h3><ul>{rows}</ul>")
    if described.get("parameters"):
        rows = "".join(
            f"<tr><td><code>{escape(parameter['name'])}</code></td><td>{escape(parameter['in'])}</td>"
            f"<td>{_inline(parameter['description'])}</td></tr>"
            for parameter in described["parameters"]
        )
        parts.append(f"<h3>Parameters</h3><table>{rows}</table>")
    if "requestBody" in described:
        parts.append(f"<h3>Body</h3>{_contents_of(described['requestBody'])}")
    if "x-websocket" in described:
        parts.append(_socket(described["x-websocket"]))
    if "responses" in described:
        parts.append("<h3>Answers</h3>")
        parts += [_answer(status, answer) for status, answer in described["responses"].items()]
    return "".join([*parts, "</section>"])


def _socket(described: Json) -> str:
    offered = ", ".join(f"<code>{escape(name)}</code>" for name in described["subprotocols"])
    rows = "".join(
        f"<tr><td><code>{code}</code></td><td>{_inline(meaning)}</td></tr>"
        for code, meaning in described["closeCodes"].items()
    )
    return f"<h3>Subprotocols</h3><p>{offered}</p><h3>Close codes</h3><table>{rows}</table>"


def _answer(status: str, answer: Json) -> str:
    headers = ", ".join(f"<code>{escape(name)}</code>" for name in answer["headers"])
    shown = "open" if status.startswith("2") else ""
    return (
        f'<details {shown}><summary><b class="s{status[0]}">{status}</b> {_inline(answer["description"])}</summary>'
        f"<p>Headers: {headers}</p>{_contents_of(answer)}</details>"
    )


def _contents_of(described: Json) -> str:
    parts = []
    for media_type, content in described.get("content", {}).items():
        parts.append(f"<p><code>{escape(media_type)}</code>: {_kind(content['schema'])}</p>")
        if "example" in content:
            parts.append(f"<pre>{escape(json.dumps(content['example'], indent=2, ensure_ascii=False))}</pre>")
    return "".join(parts)


def _schema_section(name: str, schema: Json) -> str:
    needed = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{' *' if field in needed else ''}</td><td>{_kind(described)}</td>"
        f"<td>{_inline(described.get('description', ''))}</td></tr>"
        for field, described in schema.get("properties", {}).items()
    )
    return (
        f'<section id="{name}"><h3>{name}</h3>{_text(schema.get("description", ""))}'
        f"<table><tr><th>field</th><th>type</th><th></th></tr>{rows}</table></section>"
    )


def _kind(schema: Json) -> str:
    """A schema in a few words; a reference is a link."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{name}">{name}</a>'
    for word, joined in (("anyOf", " or "), ("oneOf", " or ")):
        if word in schema:
            return joined.join(_kind(choice) for choice in schema[word])
    if "allOf" in schema:
        return _kind(schema["allOf"][0])
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"map of {_kind(schema['additionalProperties'])}"
    return escape(schema.get("format") or kind)


def _text(text: str) -> str:
    return "".join(f"<p>{_inline(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph)


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))
