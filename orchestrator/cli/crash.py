"""What lorry says when it breaks itself: one line to the person, the details in a file."""

from __future__ import annotations

import platform
import traceback
from pathlib import Path

from orchestrator.errors import LorryError
from orchestrator.setup.redaction import without_secrets


def saved(error: Exception, given: list[str]) -> LorryError:
    """An error to show instead, which names the file with the traceback."""
    where = f"the details are in {file}" if (file := _write(error, given)) else "the details could not be saved"
    return LorryError(
        f"lorry itself broke ({type(error).__name__}: {error}), which is not your mistake; {where}",
        hint="`lorry ps` shows whether a machine is still rented; `lorry reap` finds one that nobody holds",
    )


def _write(error: Exception, given: list[str]) -> Path | None:
    """The file, or None: a full disk must not hide the first error."""
    from orchestrator.home import Home

    from .common import version

    report = "\n".join(
        [
            f"lorry {version()}, Python {platform.python_version()}, {platform.platform()}",
            f"command: {given[0] if given else ''}",  # the command only: what follows may name people and places
            "",
            *traceback.format_exception(error),
        ]
    )
    try:
        folder = Home.from_env().path / "errors"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = folder / f"{1 + sum(1 for _ in folder.glob('*.txt')):04}-{type(error).__name__}.txt"
        file.write_text(without_secrets(report), encoding="utf-8")
    except Exception:  # noqa: BLE001  see above
        return None
    return file
