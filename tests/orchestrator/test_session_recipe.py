"""The session of six that can be copied: it is right as it stands, and its six share a pass on the card that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import templates
from orchestrator.config import load
from orchestrator.file.check import check, refusal
from orchestrator.order import checked_jobs, load_of
from orchestrator.pricing.gpus import GPUS
from orchestrator.pricing.queue import company
from orchestrator.pricing.work import shape_of

FILE = Path(templates.__file__).parent / "sessions/six-sd15.toml"


@pytest.fixture
def six(tmp_path: Path) -> Path:
    """A copy, with the six folders of pictures that it names."""
    (tmp_path / "six.toml").write_text(FILE.read_text())
    for job in load(tmp_path / "six.toml").jobs:
        Path(job.dataset).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (512, 512), (40 * number, 90, 120)).save(Path(job.dataset) / f"{number}.png")
            (Path(job.dataset) / f"{number}.txt").write_text("a thing, daylight")
    return tmp_path / "six.toml"


def test_the_session_of_six_is_right_and_its_jobs_share_a_pass_on_a_24_gb_card(six: Path):
    config = load(six)
    looked = check(config)
    assert refusal(looked) is None
    work = load_of(checked_jobs(config, looked))
    assert len(work.jobs) == 6
    assert company([shape_of(job, work.base_scale) for job in work.jobs], GPUS["RTX 4090"]) == 6
    assert "six share each pass" in FILE.read_text()
