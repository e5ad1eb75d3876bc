"""The same training by lorry's trainer, as a program that prints the same line as `script.py`.

python tests/bench/ours.py BASE PICTURES STEPS
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, __file__.rsplit("/tests/", 1)[0])


def peak_mib() -> float:
    """Of this program alone: what getrusage tells is the starting program's where that was larger."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main(base: str, pictures: str, steps: int) -> None:
    from trainer import together, train

    taken: list[float] = []
    advance = together.loop.advance

    def timed(*given: Any) -> Any:
        result = advance(*given)
        taken.append(time.process_time())
        return result

    together.loop.advance = timed
    with tempfile.TemporaryDirectory() as output:
        result = train(
            root=output, name="a", base=base, dataset=pictures, output="out", steps=steps, heldout=0, optimizer="AdamW",
            mixed_precision="no", resolution=64, min_bucket=64, max_bucket=64, rank=4, layers="attention", learning_rate=1e-4,
            save_every_steps=10**6,
        )  # fmt: skip
    assert result.state == "done", result.message
    told = {"first_s": taken[0], "step_s": (taken[-1] - taken[4]) / (len(taken) - 5)}
    print(json.dumps({**told, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
