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
from tests.sources import parsed

FOLDER = Path(providers.__file__).parent
VERBS = {name for name in vars(Provider) if not name.startswith("_")} - {"name", "console_url", "self_destroy"}


def classes_with_the_verbs() -> set[str]:
    """module:Class of every class on disk that writes out all verbs; the contract itself and wrappers are not clouds."""
    found = set()
    for path in FOLDER.rglob("*.py"):
        module = ".".join(("providers", *path.relative_to(FOLDER).with_suffix("").parts))
        for node in ast.walk(parsed(path)):
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


@pytest.mark.parametrize("name", [name for name in providers.PROVIDERS if providers.api_key_of(name) is not None])
def test_what_is_kept_is_asked_for_by_name_and_address_and_only_where_the_environment_has_no_key(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody opens a keyring for nothing, and a key that was kept for one address is offered to no other."""
    api_key = providers.api_key_of(name)
    assert api_key is not None
    asked: list[tuple[str, str]] = []

    def kept(*of: str) -> str:
        asked.append((of[0], of[1]))
        return "a-kept-key"

    monkeypatch.delenv(api_key.variable, raising=False)
    for variable in api_key.addresses:
        monkeypatch.delenv(variable, raising=False)
    providers.load(name, kept)
    first = next(iter(api_key.addresses))
    monkeypatch.setenv(first, "http://127.0.0.1:1")
    providers.load(name, kept)
    usual = list(api_key.addresses.values())
    assert asked == [(name, " ".join(usual)), (name, " ".join(["http://127.0.0.1:1", *usual[1:]]))]
    monkeypatch.setenv(api_key.variable, "from-the-environment")
    providers.load(name, kept)
    assert len(asked) == 2


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown provider 'vats'; there are .*sandbox"):
        providers.load("vats")


def test_the_package_alone_imports_no_cloud_and_no_http() -> None:
    script = "import sys, providers; print([m for m in sys.modules if m.startswith(('httpx', 'pydantic', 'providers.sandbox'))])"
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=FOLDER.parent).stdout
    assert said.strip() == "[]"
