"""The table of providers and the files on disk say the same."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import providers
from providers.base import Provider

FOLDER = Path(providers.__file__).parent
VERBS = {name for name in vars(Provider) if not name.startswith("_")} - {"name", "console_url", "self_destroy"}


def classes_with_the_verbs() -> set[str]:
    """module:Class of every class on disk that writes out all verbs; the contract itself and wrappers are not clouds."""
    found = set()
    for path in FOLDER.rglob("*.py"):
        module = ".".join(("providers", *path.relative_to(FOLDER).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and {f.name for f in node.body if isinstance(f, ast.FunctionDef)} >= VERBS:
                found.add(f"{module}:{node.name}")
    return found - {"providers.base:Provider", "providers.wrappers:_Wrapper"}


def test_every_provider_on_disk_is_in_the_table() -> None:
    found = classes_with_the_verbs()
    assert found
    assert found == set(providers.PROVIDERS.values())


@pytest.mark.parametrize("name", providers.PROVIDERS)
def test_a_provider_of_the_table_has_its_name_and_can_be_made_from_the_environment(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORRY_HOME", str(tmp_path))
    assert providers.load(name).name == name
    module, _, cls = providers.PROVIDERS[name].partition(":")
    assert isinstance(providers.load(name), getattr(import_module(module), cls))
    assert list(tmp_path.iterdir()) == [], "making one starts nothing"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown provider 'vats'; there are .*sandbox"):
        providers.load("vats")


def test_the_package_alone_imports_no_cloud_and_no_http() -> None:
    script = "import sys, providers; print([m for m in sys.modules if m.startswith(('httpx', 'pydantic', 'providers.sandbox'))])"
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=FOLDER.parent).stdout
    assert said.strip() == "[]"
