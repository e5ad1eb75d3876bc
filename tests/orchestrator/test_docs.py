"""The reference pages say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.cli import COMMANDS
from orchestrator.errors import EXIT_CODES
from orchestrator.file.keys import TABLES

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def generate(monkeypatch) -> ModuleType:
    """docs/generate.py, which is no package."""
    monkeypatch.setenv("COLUMNS", "80")
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_pages_are_fresh(generate):
    """When this fails: python docs/generate.py."""
    assert generate.main(check=True) == []


def test_a_stale_page_is_noticed_and_written_anew(generate, monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "REFERENCE", tmp_path)
    assert generate.main(check=True) == ["config.md", "commands.md", "exit-codes.md"]
    assert list(tmp_path.iterdir()) == []
    assert len(generate.main(check=False)) == 3
    page = tmp_path / "config.md"
    page.write_text(page.read_text(encoding="utf-8").replace("max_usd", "max_eur"), encoding="utf-8")
    assert generate.main(check=True) == ["config.md"]


def test_nothing_is_left_out_of_the_pages(generate):
    config, commands, codes = generate.config_page(), generate.commands_page(), generate.exit_codes_page()
    assert [key for _, _, table in TABLES for key in table if f"| `{key}` |" not in config] == []
    assert [name for name in COMMANDS if f"### `lorry {name}`" not in commands] == []
    assert [code for code in EXIT_CODES if f"| `{code}` |" not in codes] == []
    for page in (config, commands, codes):
        assert str(ROOT) not in page
        assert str(Path.home()) not in page
