"""A tiny base and a small dataset, made once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
REPO = Path(__file__).resolve().parents[2]
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two workers on two cores; and sums in one order."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base/` (tiny random SD1.5) and `data/` (four pictures in two buckets)."""
    import torch

    from tests import tiny

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    tiny.sd15(root / "base")
    tiny.pictures(root / "data", count=5, sizes=((64, 64), (64, 96)))
    return root


@pytest.fixture
def root(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session folder of its own; every step is said."""
    monkeypatch.setattr("trainer.saying.STEP_EVENT_EVERY_S", 0.0)
    (tmp_path / "base").symlink_to(world / "base")
    shutil.copytree(world / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture
def spec() -> Callable[..., dict[str, Any]]:
    """Keys of a small job; changed by arguments."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "name": "lisa",
            "family": "sd15",
            "base": "base",
            "dataset": "data",
            "output": "jobs/lisa/out",
            "steps": 6,
            "resolution": 64,
            "min_bucket": 32,
            "max_bucket": 128,
            "bucket_step": 32,
            "rank": 4,
            "alpha": 2.0,
            "learning_rate": 1e-2,
            "optimizer": "AdamW",
            "mixed_precision": "no",
            "save_precision": "fp32",
            "seed": 7,
            **changes,
        }

    return make
