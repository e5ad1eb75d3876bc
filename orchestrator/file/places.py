"""Where a key stands in a TOML text, which `tomllib` does not tell. Knows nothing of what the keys mean.

The parser costs 2.2 MB and 9 ms, so it is imported on the error path only.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node

Loc = tuple[str | int, ...]
"""The way to a value: `("lora", 1, "steps")`."""

_DEEPEST = 6
"""Inline tables and lists are followed this far; no key of ours is deeper."""


@dataclass(frozen=True, slots=True)
class Place:
    """A spot in the text: `line` from 1, `column` from 0, both in characters."""

    line: int
    column: int


class Places:
    """Every key of a text that `tomllib` has accepted, with the place of its name and of its value."""

    def __init__(self, text: str) -> None:
        import tree_sitter_toml
        from tree_sitter import Language, Parser

        self._lines = text.encode().split(b"\n")
        self._keys: dict[Loc, Place] = {}
        self._values: dict[Loc, Place] = {}
        self._tables_of: dict[Loc, int] = {}
        """How many `[[x]]` there have been so far."""
        root = Parser(Language(tree_sitter_toml.language())).parse(text.encode()).root_node
        for node in root.named_children:
            self._statement(node)

    def key(self, loc: Loc) -> Place | None:
        """Where the name is written; of a table, its header."""
        return self._keys.get(loc)

    def value(self, loc: Loc) -> Place | None:
        """Where the value begins."""
        return self._values.get(loc) or self._keys.get(loc)

    def _statement(self, node: Node) -> None:
        if node.type == "pair":
            self._pair(node, ())
        elif node.type in {"table", "table_array_element"}:
            name, *rest = node.named_children
            path = _path(name)
            if node.type == "table_array_element":
                whole = self._indexed(path[:-1]) + path[-1:]
                self._tables_of[whole] = self._tables_of.get(whole, 0) + 1
                self._keys.setdefault(whole, self._at(name))
            loc = self._indexed(path)
            self._keys.setdefault(loc, self._at(name))
            for pair in rest:
                if pair.type == "pair":
                    self._pair(pair, loc)

    def _pair(self, node: Node, below: Loc, depth: int = 0) -> None:
        name, value = node.named_children[0], node.named_children[-1]
        loc = below + _path(name)
        self._keys.setdefault(loc, self._at(name))
        self._value(value, loc, depth)

    def _value(self, node: Node, loc: Loc, depth: int) -> None:
        self._values.setdefault(loc, self._at(node))
        if depth > _DEEPEST:
            return
        if node.type == "inline_table":
            for pair in node.named_children:
                if pair.type == "pair":
                    self._pair(pair, loc, depth + 1)
        elif node.type == "array":
            for index, item in enumerate(child for child in node.named_children if child.type != "comment"):
                self._value(item, (*loc, index), depth + 1)

    def _indexed(self, path: Loc) -> Loc:
        """`path` with the running number behind every list of tables in it."""
        loc: Loc = ()
        for part in path:
            loc = (*loc, part)
            if loc in self._tables_of:
                loc = (*loc, self._tables_of[loc] - 1)
        return loc

    def _at(self, node: Node) -> Place:
        line, column = node.start_point
        return Place(line + 1, len(self._lines[line][:column].decode(errors="replace")))


def _path(name: Node) -> Loc:
    """The parts of a key, its quotes and dots understood by the reader that will read them for real."""
    inner: object = tomllib.loads((name.text or b"").decode() + " = 0")
    parts: list[str] = []
    while isinstance(inner, dict):
        ((part, inner),) = inner.items()
        parts.append(part)
    return tuple(parts)
