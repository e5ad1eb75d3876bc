"""As much GraphQL as a cloud's clients speak: one operation with fields, arguments, literals and variables, checked against a table.

Owns reading and answering a document. Knows no cloud: the table of types and the functions behind the fields are the face's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOKEN = re.compile(
    r'[\s,\ufeff]+|#[^\n]*|(?P<block>"""(?:[^"]|"(?!""))*""")|(?P<text>"(?:[^"\\\n]|\\.)*")'
    r"|(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<name>\$?[A-Za-z_]\w*)|(?P<mark>\.\.\.|[!():=\[\]{}|&@])"
)
WORDS = {"true": True, "false": False, "null": None}

Types = Mapping[str, Mapping[str, str]]
"""Type -> field -> the type that the field holds; "" for a scalar. A list of a type is written as the type."""


class GraphQLError(Exception):
    """The document is not GraphQL, or asks for what the schema has not."""


@dataclass(frozen=True, slots=True)
class Variable:
    """`$name`, to be filled in."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field that is asked for."""

    name: str
    alias: str
    arguments: Mapping[str, Any]
    selection: Sequence[Field] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A query or a mutation."""

    kind: str
    selection: Sequence[Field]


class _Reader:
    """Reads tokens from the left."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            match = TOKEN.match(text, at)
            if not match:
                raise GraphQLError(f"Syntax Error: Unexpected character: {text[at]!r}.")
            if match.lastgroup:
                self._tokens.append((match.lastgroup, match[0]))
            at = match.end()

    def peek(self) -> str:
        return self._tokens[0][1] if self._tokens else ""

    def next(self, wanted: str = "", kind: str = "") -> str:
        found_kind, found = self._tokens.pop(0) if self._tokens else ("end", "<EOF>")
        if (wanted and found != wanted) or (kind and found_kind != kind):
            raise GraphQLError(f"Syntax Error: Expected {wanted or kind}, found {found}.")
        return found

    def operation(self) -> Operation:
        kind = "query" if self.peek() == "{" else self.next(kind="name")
        if kind not in ("query", "mutation"):
            raise GraphQLError(f'Syntax Error: Unexpected Name "{kind}".')
        if self.peek() not in ("(", "{"):
            self.next(kind="name")
        if self.peek() == "(":  # the variables' types, which the values speak for
            while self.next() != ")":
                if not self.peek():
                    raise GraphQLError("Syntax Error: Expected ), found <EOF>.")
        selection = self.selection()
        if self.peek():
            raise GraphQLError(f"Syntax Error: Unexpected {self.peek()}.")
        return Operation(kind=kind, selection=selection)

    def selection(self) -> Sequence[Field]:
        self.next("{")
        fields = [self.field()]
        while self.peek() != "}":
            fields.append(self.field())
        self.next("}")
        return fields

    def field(self) -> Field:
        name = alias = self.next(kind="name")
        if self.peek() == ":":
            self.next(":")
            name = self.next(kind="name")
        arguments = self.pairs("(", ")") if self.peek() == "(" else {}
        return Field(name=name, alias=alias, arguments=arguments, selection=self.selection() if self.peek() == "{" else ())

    def pairs(self, begin: str, end: str) -> dict[str, Any]:
        self.next(begin)
        found = {}
        while self.peek() != end:
            name = self.next(kind="name")
            self.next(":")
            found[name] = self.value()
        self.next(end)
        return found

    def value(self) -> Any:
        if self.peek() == "{":
            return self.pairs("{", "}")
        if self.peek() == "[":
            self.next("[")
            found = []
            while self.peek() != "]":
                found.append(self.value())
            self.next("]")
            return found
        kind = self._tokens[0][0] if self._tokens else "end"
        text = self.next()
        try:
            match kind:
                case "text" | "number":
                    return json.loads(text)
                case "block":
                    return text[3:-3]
                case "name":
                    return Variable(text[1:]) if text.startswith("$") else WORDS.get(text, text)
        except ValueError as error:
            raise GraphQLError(f"Syntax Error: {error}") from error
        raise GraphQLError(f"Syntax Error: Unexpected {text}.")


def parse(text: str) -> Operation:
    """The one operation of the document."""
    return _Reader(text).operation()


def fill(value: Any, variables: Mapping[str, Any]) -> Any:
    """`value` with its variables replaced; one that was not given is null."""
    if isinstance(value, Variable):
        return variables.get(value.name)
    if isinstance(value, dict):
        return {name: fill(one, variables) for name, one in value.items()}
    return [fill(one, variables) for one in value] if isinstance(value, list) else value


def check(selection: Sequence[Field], of: str, types: Types) -> None:
    """Raises `GraphQLError` for a field that the type has not, an object without a selection and a scalar with one."""
    for field in selection:
        if field.name not in types[of]:
            raise GraphQLError(f'Cannot query field "{field.name}" on type "{of}".')
        held = types[of][field.name]
        if held and not field.selection:
            raise GraphQLError(f'Field "{field.name}" of type "{held}" must have a selection of subfields.')
        if field.selection and not held:
            raise GraphQLError(f'Field "{field.name}" must not have a selection since it has no subfields.')
        if held:
            check(field.selection, held, types)


def answer(value: Any, selection: Sequence[Field], variables: Mapping[str, Any]) -> Any:
    """What was asked for of `value`: objects are mappings, a field with arguments is a function of them."""
    if value is None or not selection:
        return value
    if isinstance(value, list):
        return [answer(one, selection, variables) for one in value]
    found = {}
    for field in selection:
        held = value.get(field.name)
        if isinstance(held, Callable):  # type: ignore[arg-type]
            held = held(fill(dict(field.arguments), variables))
        found[field.alias] = answer(held, field.selection, variables)
    return found
