"""Imports of what a training needs, and no more.

diffusers, transformers, peft and bitsandbytes import scipy because it is installed, and torch's compiler for what could be compiled: nearly
half of the time to the first step. While `leanly` imports, both are stood in for, and fetched when something of them is used for the first
time. Knows nothing of models.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
"""While files are read it is asked for marks on functions alone; what is compiled later does without them."""

SCIPY = "scipy"
"""Imported at the head of schedulers and of losses for other tasks, whose functions are not called here."""


class _Named(type):
    """A name of a package that is not there yet, good for what the head of a file takes names for: calls and `isinstance`."""

    place: str

    def __new__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> _Named:
        """None can stand in for the parent of a class."""
        if bases:
            raise TypeError(f"{bases[0].__name__} is not there yet")
        return super().__new__(cls, name, bases, members)

    def real(cls) -> Any:
        """What it stands for."""
        if isinstance(sys.modules.get(cls.place), _Later):
            raise ImportError(f"{cls.place}.{cls.__name__} is used while files are read")  # noqa: TRY004  # as if it were missing
        return getattr(importlib.import_module(cls.place), cls.__name__)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """What the real one gives."""
        return cls.real()(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        """Of a class that nobody has fetched there is no instance."""
        there = sys.modules.get(cls.place)
        return there is not None and not isinstance(there, _Later) and isinstance(instance, cls.real())


class _Later(ModuleType):
    """A module that is imported when it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            return _Named(name, (), {"place": self.__name__})
        return getattr(importlib.import_module(self.__name__), name)


class _Compiler(_Later):
    """Whatever its name, a decorator that marks nothing, with arguments and without."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or sys.modules.get(self.__name__) is not self:
            return super().__getattr__(name)
        return lambda marked=None, *_, **__: marked if marked is not None else lambda later: later


class _Stage:
    """Finds and loads the stand-ins, as an importer does. What is there already, or is not installed, is left alone."""

    def __init__(self) -> None:
        self.made: list[ModuleType] = []
        self.names = [name for name in (COMPILER, SCIPY) if name not in sys.modules and find_spec(name.partition(".")[0]) is not None]

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """Of a package that is stood in for, and of everything below it."""
        mine = any(name == one or name.startswith(f"{one}.") for one in self.names)
        return ModuleSpec(name, self, is_package=True) if mine else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty one."""
        self.made.append((_Compiler if spec.name == COMPILER else _Later)(spec.name))
        return self.made[-1]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""

    def leave(self) -> None:
        """From now on everything is found where it is."""
        for module in self.made:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]
            above, _, name = module.__name__.rpartition(".")
            if vars(sys.modules.get(above, sys)).get(name) is module:
                delattr(sys.modules[above], name)


@contextmanager
def _staged() -> Iterator[None]:
    stage = _Stage()
    sys.meta_path.insert(0, stage)
    try:
        yield
    finally:
        sys.meta_path.remove(stage)
        stage.leave()


def leanly(imports: Callable[[], None]) -> None:
    """Do imports that would bring too much along."""
    try:
        with _staged():
            imports()
    except (ImportError, RuntimeError, TypeError, AttributeError):  # a library of another day needs at once what is stood in for
        imports()
