"""Which packages a rented machine has, as far as its list of requirements tells: torch comes with its image."""

from __future__ import annotations

import re
from pathlib import Path

import templates
from trainer.optimizer_names import is_dotted

WITH_THE_IMAGE = frozenset({"torch"})

_REQUIRED = re.compile(r"^([A-Za-z0-9][\w.-]*)==", re.MULTILINE)


def absent_package(optimizer: str) -> str:
    """The package of an optimizer's dotted name that a rented machine has not; empty where it has it, or the name has no dots."""
    if not is_dotted(optimizer):
        return ""
    package = optimizer.partition(".")[0]
    return "" if _normal(package) in _installed() else package


def _installed() -> frozenset[str]:
    text = (Path(templates.__file__).parent / "requirements.txt").read_text(encoding="utf-8")
    return WITH_THE_IMAGE | {_normal(name) for name in _REQUIRED.findall(text)}


def _normal(name: str) -> str:
    """As package indexes compare names: `Lion_pytorch` is `lion-pytorch`."""
    return re.sub(r"[-_.]+", "-", name).lower()
