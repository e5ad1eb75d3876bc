"""Files that lorry copies or fills in: recipes, the config that `init` writes, what runs on the rented machine, the report page."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def recipe_names() -> tuple[str, ...]:
    """Full names, `sd15-character` for one."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in files(__name__).joinpath("recipes").iterdir() if entry.name.endswith(".toml"))
    )


def recipe_text(name: str) -> str:
    """The recipe as TOML: a header for people, and keys of `[[lora]]`."""
    if name not in recipe_names():
        raise KeyError(name)
    return files(__name__).joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")


def text(name: str) -> str:
    """A template of this folder as it stands."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
