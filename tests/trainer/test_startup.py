"""Imports bring no more than a training needs, and what was left out is there when it is wanted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

LATER = """
import sys
from trainer.families import loading, plugin
from trainer.startup import leanly
leanly(lambda: loading._bring(plugin("sd15")))
print(sorted({"torch._dynamo", "torch._inductor", "scipy"} & set(sys.modules)))

import diffusers, torch
scheduler = diffusers.EulerDiscreteScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(5)  # asks scipy for a distribution
print("scipy.stats" in sys.modules, len(scheduler.sigmas))
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item(), "torch._dynamo.eval_frame" in sys.modules)
"""


def test_the_compiler_and_scipy_are_fetched_when_they_are_used_and_not_before() -> None:
    """In a process of its own: this one has them already."""
    done = subprocess.run([sys.executable, "-c", LATER], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "True 6", "2.0 True"]


def test_imports_that_cannot_wait_are_done_again_as_they_are() -> None:
    from trainer.startup import leanly

    tried: list[bool] = []

    def imports() -> None:
        tried.append(True)
        if len(tried) == 1:
            raise ImportError("scipy.stats.beta is used while files are read")

    leanly(imports)
    assert len(tried) == 2
    assert not any(type(one).__module__ == "trainer.startup" for one in [*sys.meta_path, *sys.modules.values()])
