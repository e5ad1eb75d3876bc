"""Draws the life of a lease from its table: `python docs/lifecycle.py [--check]` writes, or checks, docs/lifecycle.md."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from orchestrator.lifecycle import PAYING, TRANSITIONS, Phase  # noqa: E402

HEAD = """\
# The life of a lease

Drawn from `orchestrator/lifecycle.py` by `python docs/lifecycle.py`; do not edit. A run is a list of attempts, each
attempt one lease with one label. In the phases with a thick border a machine may bill; from each of them `give_up`
leads to `releasing`, and only the provider's own word leads out of it.

"""


def page() -> str:
    """The document, from the table alone."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {Phase.PLANNED}"]
    for phase, row in TRANSITIONS.items():
        for after in dict.fromkeys(row.values()):
            signals = ", ".join(signal for signal, to in row.items() if to is after)
            lines.append(f"    {phase} --> {after} : {signals}")
    lines += ["    classDef paying stroke-width:3px", f"    class {','.join(p for p in Phase if p in PAYING)} paying", "```", ""]
    return HEAD + "\n".join(lines)


def main() -> int:
    """Write the page; with --check only say whether it is fresh."""
    target = HERE / "lifecycle.md"
    if "--check" in sys.argv[1:]:
        return 0 if target.exists() and target.read_text(encoding="utf-8") == page() else 1
    target.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
