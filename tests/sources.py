"""The project's own files, read as code."""

from __future__ import annotations

import ast
import gc
from pathlib import Path


def parsed(file: Path) -> ast.Module:
    """The file's syntax tree. CPython 3.11 may fail with a SystemError when a collection of garbage runs in the middle of making one."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    finally:
        if collects:
            gc.enable()
