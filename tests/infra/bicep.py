"""Reads Bicep files and evaluates their expressions, so that tests can give the broker the environment they make.

tree-sitter parses. pycep-parser can't replace it: it reads `!a && b` as `!(a && b)`, and does not tell the string
`'none'` from the name `none`. `bicep snapshot` evaluates, too, but pip does not install the compiler.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tree_sitter_bicep
from tree_sitter import Language, Node, Parser

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
TEMPLATES = sorted(INFRA.rglob("*.bicep"))
PARAMETER_FILES = sorted(INFRA.rglob("*.bicepparam"))
STAGES = ("dev", "staging", "production")

_parser = Parser(Language(tree_sitter_bicep.language()))


def parse(text: str) -> Node:
    """The syntax tree of a Bicep text. Raises `ValueError` if it is not Bicep."""
    root = _parser.parse(text.encode()).root_node
    if root.has_error:
        raise ValueError("not Bicep")
    return root


@dataclass(frozen=True)
class Declaration:
    """A parameter, variable, resource, module or output: its name, the node of its value, its decorators by name."""

    kind: str
    name: str
    value: Node | None
    decorators: Mapping[str, list[Node]]
    line: int
    label: str = ""
    existing: bool = False

    @property
    def condition(self) -> Node | None:
        """The `if (…)` of a resource or module."""
        if self.value is None or self.value.type != "if_statement":
            return None
        return next(node for node in self.value.named_children if node.type == "parenthesized_expression")

    @property
    def body(self) -> Node:
        """The object of a resource or module, without its condition."""
        assert self.value is not None
        if self.value.type == "if_statement":
            return next(node for node in self.value.named_children if node.type == "object")
        return self.value

    @property
    def allowed(self) -> list[Any]:
        """The values that `@allowed` names; empty without it."""
        nodes = self.decorators.get("allowed")
        values: list[Any] = evaluate(nodes[0], {}) if nodes else []
        return values


class Template:
    """One Bicep file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.root = parse(self.text)
        self.declarations = list(_declarations(self.root))

    def of(self, kind: str) -> dict[str, Declaration]:
        return {item.name: item for item in self.declarations if item.kind == kind}

    @property
    def parameters(self) -> dict[str, Declaration]:
        return self.of("parameter")

    @property
    def variables(self) -> dict[str, Declaration]:
        return self.of("variable")

    @property
    def resources(self) -> dict[str, Declaration]:
        return self.of("resource")

    @property
    def modules(self) -> dict[str, Declaration]:
        return self.of("module")

    @property
    def outputs(self) -> dict[str, Declaration]:
        return self.of("output")

    def scope(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Names and their values: `given`, defaults of parameters, resources as references, and variables."""
        names: dict[str, Any] = {name: Reference(name) for name in [*self.resources, *self.modules]}
        names["$folder"] = self.path.parent
        for name, item in self.parameters.items():
            if name in given:
                names[name] = given[name]
            elif item.value is not None:
                names[name] = evaluate(item.value, names)
        for name, item in self.variables.items():
            assert item.value is not None
            names[name] = evaluate(item.value, names)
        return names


def read_parameters(path: Path, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a .bicepparam file assigns. The parser knows only Bicep, so its assignments are read as variables."""
    text = re.sub(r"^using .*$", "", path.read_text(), flags=re.MULTILINE)
    root = parse(re.sub(r"^param (\w+) =", r"var \1 =", text, flags=re.MULTILINE))
    names: dict[str, Any] = {"$environ": environ or {}}
    found = {item.name: evaluate(item.value, names) for item in _declarations(root) if item.value is not None}
    assert len(found) == len(re.findall(r"^param ", text, flags=re.MULTILINE))
    return found


def template_of(parameter_file: Path) -> Path:
    """The template that a .bicepparam file is for."""
    using = re.search(r"^using '([^']+)'$", parameter_file.read_text(), flags=re.MULTILINE)
    assert using
    return (parameter_file.parent / using[1]).resolve()


def properties(node: Node) -> dict[str, Node]:
    """The properties of an object, by name."""
    found = {}
    for item in node.named_children:
        if item.type == "object_property":
            key, value = (part for part in item.named_children if part.type != "comment")
            found[_text(key)] = value
    return found


def at(node: Node, *path: str) -> Node:
    """The node at a path of property names."""
    for name in path:
        node = properties(node)[name]
    return node


# --- expressions


class Reference(str):
    """A value that only Azure knows, by its expression, such as `vault.properties.vaultUri`."""

    __slots__ = ()

    def member(self, name: str) -> "Reference":
        return Reference(f"{self}.{name}")


def evaluate(node: Node, names: Mapping[str, Any]) -> Any:
    """The value of an expression. `names` has the values of its identifiers."""
    parts = [part for part in node.named_children if part.type != "comment"]
    match node.type:
        case "string":
            return "".join(_pieces(node, names)) if parts else _text(node)  # the parser makes no part of blanks alone
        case "number":
            return int(_text(node))
        case "boolean":
            return _text(node) == "true"
        case "identifier":
            return names[_text(node)]
        case "array":
            return [evaluate(part, names) for part in parts]
        case "object":
            pairs = ((part.named_children[0], part.named_children[-1]) for part in parts)
            return {
                _text(key) if key.type == "identifier" else evaluate(key, names): evaluate(value, names)
                for key, value in pairs
            }
        case "parenthesized_expression":
            return evaluate(parts[0], names)
        case "unary_expression":
            return not evaluate(parts[0], names)
        case "ternary_expression":
            return evaluate(parts[1 if evaluate(parts[0], names) else 2], names)
        case "binary_expression":
            return _binary(node, evaluate(parts[0], names), evaluate(parts[1], names))
        case "member_expression":
            owner = evaluate(parts[0], names)
            return owner.member(_text(parts[-1])) if isinstance(owner, Reference) else owner[_text(parts[-1])]
        case "subscript_expression":
            owner, key = (evaluate(part, names) for part in parts)
            return owner.member(key) if isinstance(owner, Reference) else owner[key]
        case "call_expression":
            return _call(parts, names)
        case "for_statement":
            item, items, body = parts
            return [evaluate(body, {**names, _text(item): value}) for value in evaluate(items, names)]
    raise ValueError(f"{node.type} is not evaluated here: {_text(node)}")


def _binary(node: Node, left: Any, right: Any) -> Any:
    operator = next(part.type for part in node.children if not part.is_named)
    match operator:
        case "==":
            return left == right
        case "!=":
            return left != right
        case "&&":
            return left and right
        case "||":
            return left or right
        case "*":
            return left * right
        case "+":
            return left + right
    raise ValueError(operator)


def _call(parts: list[Node], names: Mapping[str, Any]) -> Any:
    given = [evaluate(part, names) for part in parts[1].named_children]
    match _text(parts[0]):
        case "concat":
            return [item for items in given for item in items]
        case "string":
            return str(given[0])
        case "empty":
            return not given[0]
        case "split":
            return given[0].split(given[1])
        case "join":
            return given[1].join(given[0])
        case "replace":
            return given[0].replace(given[1], given[2])
        case "contains":
            return given[1] in given[0]
        case "json":
            return float(given[0])
        case "loadJsonContent":
            return json.loads((names["$folder"] / given[0]).read_text())
        case "readEnvironmentVariable":
            return names["$environ"].get(given[0], *given[1:] or [f"<{given[0]}>"])
        case function:
            return Reference(f"{function}({', '.join(map(str, given))})")


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def _pieces(node: Node, names: Mapping[str, Any]) -> Iterator[str]:
    for part in node.named_children:
        if part.type == "interpolation":
            value = evaluate(part.named_children[0], names)
            yield f"<{value}>" if isinstance(value, Reference) else str(value)
        elif part.type == "escape_sequence":
            yield _ESCAPES.get(_text(part)[1:], _text(part)[1:])
        else:
            yield _text(part)


# --- declarations


def _declarations(root: Node) -> Iterator[Declaration]:
    decorators: dict[str, list[Node]] = {}
    for node in root.named_children:
        if node.type == "decorators":
            decorators = {}
            for call in (item.named_children[0] for item in node.named_children):
                decorators[_text(call.named_children[0])] = call.named_children[1].named_children
            continue
        kind, _, declaration = node.type.partition("_")
        if declaration == "declaration":
            yield _declaration(kind, node, decorators)
        if node.type != "comment":
            decorators = {}


def _declaration(kind: str, node: Node, decorators: dict[str, list[Node]]) -> Declaration:
    name = node.named_children[0]
    has_value = any(part.type == "=" for part in node.children)
    label = _text(node.named_children[1]).strip("'") if kind in {"resource", "module"} else ""
    return Declaration(
        kind,
        _text(name),
        node.named_children[-1] if has_value else None,
        decorators,
        node.start_point[0],
        label,
        existing=any(part.type == "existing" for part in node.children),
    )


def _text(node: Node) -> str:
    text = (node.text or b"").decode()
    return text.strip("'") if node.type == "string" else text
