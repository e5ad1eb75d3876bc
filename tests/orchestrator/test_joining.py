"""Several files, one session: what one says holds for all, and what two say differently is refused, all of it at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cli import main
from orchestrator.config import load
from orchestrator.errors import ConfigError
from orchestrator.file.joining import joined
from orchestrator.prepare import checked_config
from tests import tiny

Write = Callable[..., Path]
BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A config of one job."""
    tiny.pictures(tmp_path / "data", count=2)

    def make(name: str, *, budget: str = "max_usd = 2", machine: str = "", job: str = "", steps: int = 10) -> Path:
        path = tmp_path / f"{name}.toml"
        lora = f'name = "{job or name}"\ndataset = "data"\nbase = "{BASE}"\nsteps = {steps}'
        path.write_text(f'name = "{name}"\n[budget]\n{budget}\n[machine]\n{machine}\n[[lora]]\n{lora}\n')
        return path

    return make


def test_the_jobs_of_all_files_are_one_session_with_what_any_of_them_says(write: Write):
    one = write("lisa", machine='gpus = ["RTX 4090"]')
    two = write("forest", budget="max_usd = 2\nmax_hours = 3", machine="max_usd_per_hour = 0.5")
    config, jobs = checked_config([one, two])
    assert (config.name, [job.name for job in jobs]) == ("lisa", ["lisa", "forest"])
    assert (config.budget.max_usd, config.budget.max_hours) == (Decimal(2), 3)
    assert (config.machine.gpus, config.machine.max_usd_per_hour) == (("RTX 4090",), Decimal("0.5"))
    assert config.machine.providers == ("vast", "runpod")


def test_every_conflict_is_named_with_both_files_and_a_way_out(write: Write):
    one = write("lisa", machine='providers = ["vast"]\ninterruptible = true')
    two = write("forest", budget="max_usd = 3", machine='providers = ["runpod"]\ninterruptible = false', job="Lisa")
    with pytest.raises(ConfigError) as refused:
        checked_config([one, two])
    words = {finding.message for finding in refused.value.findings}
    assert words == {
        f"[budget] max_usd is 2 in {one} and 3 here",
        f"[machine] providers is vast in {one} and runpod here",
        f"[machine] interruptible is true in {one} and false here",
        f"a job is called Lisa here and in {one}; both would be written into jobs/Lisa",
    }
    assert {finding.path for finding in refused.value.findings} == {str(two)}
    assert "or say --budget USD" in next(f.hint for f in refused.value.findings if "max_usd" in f.message)


def test_what_the_command_line_says_is_no_conflict(write: Write):
    one, two = write("lisa", machine='providers = ["vast"]'), write("forest", budget="max_usd = 3", machine='providers = ["runpod"]')
    config, _ = checked_config([one, two], given=["max_usd", "providers"])
    assert len(config.jobs) == 2


def test_check_tells_of_several_files_at_once(write: Write, capsys: pytest.CaptureFixture[str]):
    one, two = write("lisa"), write("forest", budget="max_usd = 3")
    assert main(["check", str(one), str(two), "--json"]) == 2
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["code"], found["path"]) == ("LRY-CONFIG-RULE", str(two))
    assert main(["check", str(one), str(write("lake"))]) == 0
    assert f"{one}, " in capsys.readouterr().err


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["", "max_usd_per_hour = 1", "max_usd_per_hour = 2", "disk_gib = 60"]), min_size=1, max_size=4))
def test_files_join_where_no_key_is_said_in_two_ways(tmp_path_factory: pytest.TempPathFactory, said: list[str]):
    folder = tmp_path_factory.mktemp("files")
    (folder / "data").mkdir()
    configs = []
    for number, machine in enumerate(said):
        path = folder / f"{number}.toml"
        job = f'name = "j{number}"\ndataset = "data"\nbase = "{BASE}"\nsteps = 1'
        path.write_text(f'name = "n"\n[budget]\nmax_usd = 2\n[machine]\n{machine}\n[[lora]]\n{job}\n')
        configs.append(load(path))
    if len({one for one in said if one.startswith("max_usd_per_hour")}) > 1:
        with pytest.raises(ConfigError):
            joined(configs)
        return
    whole = joined(configs)
    assert [job.name for job in whole.jobs] == [f"j{number}" for number in range(len(said))]
    assert (whole.machine.disk_gib == 60) == ("disk_gib = 60" in said)
