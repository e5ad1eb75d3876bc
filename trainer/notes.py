"""What is wrong with a dataset, collected: every problem, none at the cost of another.

A path is shown from the dataset's own folder on, with everything that a terminal could trip over written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Key = Literal["dataset", "masks", "regularisation"]
"""The key of the job that names a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with the dataset, and what to do about it."""

    code: str
    path: str
    message: str
    hint: str
    line: int | None = None
    severity: Literal["error", "warning"] = "error"
    file: Path | None = None
    """The whole path of what `path` shows."""
    key: Key = "dataset"


@dataclass(slots=True)
class Notes:
    """Where the problems of one folder are collected."""

    root: Path
    key: Key = "dataset"
    found: list[Problem] = field(default_factory=list)

    def error(self, code: str, path: Path, message: str, hint: str, line: int | None = None) -> None:
        """A problem that keeps the job from starting."""
        shown = shown_below(path, self.root)
        self.found.append(Problem(code=code, path=shown, message=message, hint=hint, line=line, file=path, key=self.key))

    def warning(self, code: str, path: Path, message: str, hint: str, line: int | None = None) -> None:
        """A problem that is to be known."""
        shown = shown_below(path, self.root)
        problem = Problem(code=code, path=shown, message=message, hint=hint, line=line, severity="warning", file=path, key=self.key)
        self.found.append(problem)


def shown_below(path: Path, root: Path) -> str:
    """The path as a person reads it."""
    try:
        shown = str(path.relative_to(root.parent))
    except ValueError:
        shown = str(path)
    return printable(shown)


def printable(text: str) -> str:
    """The text with what cannot be seen written out."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def listed(paths: Sequence[Path], most: int = 20) -> str:
    """`a.png, b.png and 3 more`."""
    names = ", ".join(printable(path.name) for path in paths[:most])
    return names if len(paths) <= most else f"{names} and {len(paths) - most} more"
