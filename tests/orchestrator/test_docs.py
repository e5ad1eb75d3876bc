"""The reference pages say what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.cli import COMMANDS
from orchestrator.errors import EXIT_CODES
from orchestrator.file.guide import CHAPTERS
from orchestrator.file.keys import TABLES, LoraConfig, RunConfig
from trainer.optimizer_names import OPTIMIZERS
from trainer.protocol import Evaluated, Step

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
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    names = ["reference/config.md", "reference/commands.md", "reference/exit-codes.md", "training.md"]
    assert generate.main(check=True) == names
    assert list(tmp_path.iterdir()) == []
    assert generate.main(check=False) == names
    for name, was, lie in (("reference/config.md", "max_usd", "max_eur"), ("training.md", "| `rank` |", "| `rang` |")):
        page = tmp_path / name
        page.write_text(page.read_text(encoding="utf-8").replace(was, lie), encoding="utf-8")
        assert generate.main(check=True) == [name]
        generate.main(check=False)


def test_the_prose_of_a_page_outlives_its_tables(generate, monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    (tmp_path / "training.md").write_text("# By hand\n\nTwo lines.\n", encoding="utf-8")
    assert generate.training_page().startswith("# By hand\n\nTwo lines.\n\n<!--")


def test_every_option_has_one_place_and_a_time_to_touch_it():
    """When this fails: a new option wants a line in orchestrator/file/guide.py, then python docs/generate.py."""
    named = [key for chapter in CHAPTERS for key in chapter.options]
    assert sorted(named) == sorted(LoraConfig.model_fields)
    assert [key for chapter in CHAPTERS for key, when in chapter.options.items() if not when.endswith((".", "`"))] == []


def test_the_first_page_knows_every_optimizer_and_names_only_options_that_are_there():
    prose = (ROOT / "docs/training.md").read_text(encoding="utf-8").partition("## Every option")[0]
    assert [name for name in OPTIMIZERS if f"`{name}`" not in prose] == []
    named = re.findall(r"`([a-z][a-z0-9_]+) = ", prose) + re.findall(r"`([a-z0-9]+_[a-z0-9_]+)`", prose)
    assert len(named) > 10
    events = {*Step.model_fields, *Evaluated.model_fields, "on_event"}
    assert {*named} - {*LoraConfig.model_fields, *RunConfig.model_fields, *events} == set()


def test_nothing_is_left_out_of_the_pages(generate):
    config, commands, codes = generate.config_page(), generate.commands_page(), generate.exit_codes_page()
    assert [key for _, _, table in TABLES for key in table if f"| `{key}` |" not in config] == []
    assert [name for name in COMMANDS if f"### `lorry {name}`" not in commands] == []
    assert [code for code in EXIT_CODES if f"| `{code}` |" not in codes] == []
    for page in (config, commands, codes, generate.training_page()):
        assert str(ROOT) not in page
        assert str(Path.home()) not in page
