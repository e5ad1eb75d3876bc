"""Draws docs/pictures/run.svg: a real `lorry run` of the demo on the practice cloud, as a terminal shows it.

    python docs/pictures.py

Runs the demo in a terminal of its own (a pty), keeps the picture of the moment at which the jobs are half done, and lets
the run end. Takes as long as the demo.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import sys
import tempfile
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).parent.parent
COLUMNS, LINES = 104, 30
COLOURS = {"brown": "yellow"}
"""pyte's names that rich does not know."""


def main() -> None:
    """Run, watch, draw."""
    screen = pyte.Screen(COLUMNS, LINES)
    drawn = record(screen)
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(drawn)
    target = ROOT / "docs" / "pictures" / "run.svg"
    target.write_text(without_fonts(console.export_svg(title="lorry run")))
    print(f"wrote {target.relative_to(ROOT)}")


def without_fonts(svg: str) -> str:
    """The picture without the fonts that rich would have it fetch from elsewhere: any monospace one will do."""
    return re.sub(r"@font-face\s*\{.*?\}\n?", "", re.sub(r"<!-- .*? -->\n?", "", svg), flags=re.DOTALL)


def record(screen: pyte.Screen) -> Text:
    """The screen at the best moment of a demo that is run for the purpose."""
    stream = pyte.ByteStream(screen)
    home = tempfile.mkdtemp(prefix="lorry-picture-")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(LORRY_HOME=home, TERM="xterm-256color", COLUMNS=str(COLUMNS), OMP_WAIT_POLICY="PASSIVE")
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "templates.demo.demo"])
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    best = Text()
    try:
        while select.select([terminal], [], [], 120)[0]:
            stream.feed(os.read(terminal, 65536))
            if half_done(screen):
                best = as_text(screen)
    except OSError:  # the terminal closed: the demo has ended
        pass
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    return best or as_text(screen)


def half_done(screen: pyte.Screen) -> bool:
    """Whether the live view shows training in its middle."""
    shown = "\n".join(screen.display)
    return "spent" in shown and re.search(r"step 1[5-9]\d/300", shown) is not None


def as_text(screen: pyte.Screen) -> Text:
    """The screen with its colours."""
    lines = []
    for y in range(screen.lines):
        line = Text()
        for x in range(screen.columns):
            cell = screen.buffer[y][x]
            colour = None if cell.fg == "default" else COLOURS.get(cell.fg, cell.fg if not _is_hex(cell.fg) else f"#{cell.fg}")
            line.append(cell.data, Style(color=colour, bold=cell.bold, dim=False))
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return Text("\n").join(lines)


def _is_hex(colour: str) -> bool:
    return len(colour) == 6 and all(c in "0123456789abcdef" for c in colour)


if __name__ == "__main__":
    main()
