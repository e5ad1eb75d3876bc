"""The trainer as a library: what docs/training.md shows is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from trainer import train
from trainer.errors import SpecError, TrainerError

PAGE = Path(__file__).resolve().parents[2] / "docs/training.md"


def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def test_ten_lines_of_the_page_train_a_lora(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder that has what they name; nothing else is set up."""
    for name, there in {"models/sd15": "base", "pictures/10_lisa woman": "data"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(world / there)
    monkeypatch.chdir(tmp_path)
    code, made = example(), dict[str, Any]()
    assert len(code.strip().splitlines()) <= 11  # ten, and the blank one
    exec(compile(code, str(PAGE), "exec"), made)
    assert capsys.readouterr().out == f"done {made['result'].adapter}\n"
    assert made["result"].adapter.resolve() == (tmp_path / "lisa/lisa.safetensors").resolve()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"rnak": 4}, "rnak"), ({"base": "nowhere"}, "nowhere is not there"), ({"base": "owner/name"}, "family")],
    ids=["a key", "no base", "a hub id whose family nobody told"],
)
def test_what_is_wrong_with_a_call_is_raised_in_words(world: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainerError if "base" in wrong else SpecError, match=words):
        train(root=world, **{"name": "a", "base": "base", "dataset": "data", "output": "nothing", **wrong})
    assert not (world / "nothing").exists()
