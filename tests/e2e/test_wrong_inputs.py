"""What is wrong is said before anything is rented: the thing by its name, the right exit code, the next move, no traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import tiny

from .world import Lorry, config, processes_naming


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A mistake: how it is made, and what must be said of it."""

    make: Callable[[Path, Path], tuple[str, ...]]
    """(folder, base) -> the rest of the command line."""
    code: int
    says: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


def given(folder: Path, base: Path, *, dataset: Path | None = None, **more: object) -> str:
    """A config that is right but for what `more` says."""
    data = dataset or tiny.pictures(folder / "lisa")
    return str(config(folder, base, {"lisa": data}, **more))  # type: ignore[arg-type]


def no_config(folder: Path, base: Path) -> tuple[str, ...]:
    return ("-y",)


def named_config_missing(folder: Path, base: Path) -> tuple[str, ...]:
    return (str(folder / "autumn.toml"), "-y")


def unknown_key(folder: Path, base: Path) -> tuple[str, ...]:
    return (given(folder, base, learning_rte=1e-4), "-y")


def missing_dataset(folder: Path, base: Path) -> tuple[str, ...]:
    return (given(folder, base, dataset=folder / "nowhere"), "-y")


def empty_dataset(folder: Path, base: Path) -> tuple[str, ...]:
    (folder / "hollow").mkdir()
    return (given(folder, base, dataset=folder / "hollow"), "-y")


def no_caption(folder: Path, base: Path) -> tuple[str, ...]:
    file = given(folder, base)
    (folder / "lisa/02.txt").unlink()
    return (file, "-y")


def corrupt_picture(folder: Path, base: Path) -> tuple[str, ...]:
    file = given(folder, base)
    picture = folder / "lisa/01.png"
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    return (file, "-y")


def wrong_base(folder: Path, base: Path) -> tuple[str, ...]:
    shutil.copytree(base, folder / "half", ignore=shutil.ignore_patterns("unet"))
    return (given(folder, folder / "half"), "-y")


def missing_base(folder: Path, base: Path) -> tuple[str, ...]:
    return (given(folder, folder / "no-base"), "-y")


def small_cap(folder: Path, base: Path) -> tuple[str, ...]:
    return (given(folder, base, max_usd=0.0001), "-y")


def no_offer(folder: Path, base: Path) -> tuple[str, ...]:
    return (given(folder, base, machine='gpus = ["B200"]\nmax_usd_per_hour = 0.01'), "-y")


def nobody_to_ask(folder: Path, base: Path) -> tuple[str, ...]:
    return (given(folder, base),)


def right(folder: Path, base: Path) -> tuple[str, ...]:
    return (given(folder, base), "-y")


MISTAKES = {
    "no config": Wrong(make=no_config, code=2, says=("lorry.toml", "lorry init")),
    "a config that is not there": Wrong(make=named_config_missing, code=2, says=("autumn.toml",)),
    "unknown key": Wrong(make=unknown_key, code=2, says=("learning_rte", "learning_rate", "lorry.toml:")),
    "missing dataset": Wrong(make=missing_dataset, code=3, says=("nowhere",)),
    "empty dataset": Wrong(make=empty_dataset, code=3, says=("hollow",)),
    "picture without caption": Wrong(make=no_caption, code=3, says=("02.png", "caption")),
    "corrupt picture": Wrong(make=corrupt_picture, code=3, says=("01.png",)),
    "a base that lacks a part": Wrong(make=wrong_base, code=2, says=("half", "unet")),
    "a base that is not there": Wrong(make=missing_base, code=2, says=("no-base",)),
    "cap below the plan": Wrong(make=small_cap, code=5, says=("0.0001",)),
    "no offer": Wrong(make=no_offer, code=4, says=("offer",)),
    "nobody to confirm": Wrong(make=nobody_to_ask, code=2, says=("-y",)),
    "home not writable": Wrong(make=right, code=2, says=("/dev/null/home", "LORRY_HOME"), env=(("LORRY_HOME", "/dev/null/home"),)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_anything_is_rented(mistake: str, lorry: Lorry, base: Path):
    wrong = MISTAKES[mistake]
    before = lorry.cloud.machines()
    arguments = wrong.make(lorry.folder, base)
    spoken = lorry("run", *arguments, **dict(wrong.env))
    as_json = lorry("run", *arguments, "--json", **dict(wrong.env))
    assert (spoken.code, as_json.code) == (wrong.code, wrong.code), spoken.err
    assert "error: " in spoken.err
    assert [word for word in wrong.says if word not in spoken.err] == [], spoken.err
    assert spoken.out == ""
    for text in (spoken.err, as_json.err):
        assert "Traceback" not in text
        assert "lorry itself broke" not in text
    document = as_json.document
    assert document["exit_code"] == wrong.code
    assert document["error"].startswith("LRY-")
    told = " ".join([document["message"], document["hint"], *(f"{f['path']} {f['message']} {f['hint']}" for f in document["findings"])])
    assert [word for word in wrong.says if word.rstrip(":") not in told] == []
    assert lorry.cloud.machines() == before, "nothing may be rented for a mistake"
    assert lorry.runs == []


def test_a_cloud_that_cannot_be_reached_is_said(lorry: Lorry, quick: Path):
    done = lorry("run", str(quick), "-y", "--json", LORRY_SANDBOX_URL="http://127.0.0.1:9")
    assert done.code == 4
    assert "cannot be reached" in done.err
    assert done.document["exit_code"] == 4
    assert lorry.runs == []


def test_a_wrong_key_is_a_matter_of_credentials(lorry: Lorry, quick: Path):
    done = lorry("run", str(quick), "-y", "--json", LORRY_SANDBOX_KEY="sandbox-wrong")
    assert done.code == 11
    assert "LORRY_SANDBOX_KEY" in done.err
    assert lorry.runs == []


def test_a_mistake_starts_no_cloud(lorry: Lorry, base: Path):
    """The practice cloud is started by whoever needs it; a config that is wrong needs none."""
    arguments = unknown_key(lorry.folder, base)
    done = lorry("run", *arguments, LORRY_SANDBOX_URL="", LORRY_SANDBOX_KEY="")
    assert done.code == 2
    assert not (lorry.home / "sandbox").exists()
    assert processes_naming(str(lorry.home)) == {}
