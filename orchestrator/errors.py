"""Everything lorry may say no with. The class decides the exit code, the words are for the person who pays.

* LorryError
  - UsageError           2   the command line, or a run that does not exist
  - ConfigError          2   lorry.toml; carries every finding, not the first
  - DatasetError         3   pictures and captions; carries every finding
  - NoOffer              4   no machine fits, or none could be had
  - OverBudget           5   the cap does not cover the plan
  - MachineFailed        6   boot, set-up or the link; the machine was destroyed
  - TrainingFailed       7   a job failed; what there was is at home
  - ResultsIncomplete    8   something that was promised did not come home
  - MayStillBill        10   a machine is not known to be gone; wins over every other code
  - IntegrityError      12   a host key, hash or file is not what it must be
  - Interrupted        130   the user stopped it; destroyed and verified

`providers.errors` carries its own codes (4 and 11). `EXIT_CODES` is the table that the help page shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "lorry itself broke; it says where the details are",
    2: "usage or config",
    3: "dataset",
    4: "no offer, or refused by the provider",
    5: "budget: the cap does not cover the plan",
    6: "machine or set-up failed, machine destroyed",
    7: "training failed, results so far are at home, machine destroyed",
    8: "results incomplete",
    10: "something may still be billing (always wins)",
    11: "credentials",
    12: "integrity or security stop",
    130: "interrupted, machine destroyed and seen to be gone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong in what the user gave, with its place and what to write instead."""

    code: str
    message: str
    path: str = ""
    line: int | None = None
    hint: str = ""
    severity: Literal["error", "warning"] = "error"
    excerpt: str = ""
    """The offending line as written, for the caret below it."""
    column: int | None = None
    """0-based."""

    def as_json(self) -> dict[str, object]:
        """The words that `lorry check --json` promises."""
        return {
            "code": self.code,
            "path": self.path,
            "line": self.line,
            "message": self.message,
            "hint": self.hint,
            "severity": self.severity,
        }


class LorryError(Exception):
    """Something a person can act on. `hint` is the next move."""

    code = "LRY-ERROR"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(LorryError):
    """The command line asks for what cannot be."""

    code = "LRY-USAGE"
    exit_code = 2


class WithFindings(LorryError):
    """An error that carries every finding at once."""

    def __init__(self, message: str, findings: Sequence[Finding], *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.findings = tuple(findings)


class ConfigError(WithFindings):
    """lorry.toml is not right."""

    code = "LRY-CONFIG"
    exit_code = 2


class DatasetError(WithFindings):
    """The pictures or captions are not right."""

    code = "LRY-DATA"
    exit_code = 3


class NoOffer(LorryError):
    """No machine fits, or none could be had."""

    code = "LRY-NO-OFFER"
    exit_code = 4


class OverBudget(LorryError):
    """The cap does not cover the plan."""

    code = "LRY-BUDGET"
    exit_code = 5


class MachineFailed(LorryError):
    """The rented machine did not boot, could not be set up, or was lost."""

    code = "LRY-MACHINE"
    exit_code = 6


class TrainingFailed(LorryError):
    """At least one job failed; what it left is at home."""

    code = "LRY-TRAINING"
    exit_code = 7


class ResultsIncomplete(LorryError):
    """A committed file did not come home."""

    code = "LRY-INCOMPLETE"
    exit_code = 8


class MayStillBill(LorryError):
    """A machine is not known to be gone."""

    code = "LRY-STILL-BILLING"
    exit_code = 10


class IntegrityError(LorryError):
    """What arrived is not what was sent, or the other side is not who it was."""

    code = "LRY-INTEGRITY"
    exit_code = 12


class Interrupted(LorryError):
    """The user stopped the run."""

    code = "LRY-INTERRUPTED"
    exit_code = 130


def outcome_of(err: BaseException | None) -> dict[str, Any]:
    """How a run ends with `err`, in the words of the ledger and the receipt; None: well."""
    if err is None:
        return {"exit_code": 0, "message": "", "hint": ""}
    return {"exit_code": getattr(err, "exit_code", LorryError.exit_code), "message": str(err), "hint": getattr(err, "hint", "")}


def place(path: Path | str, line: int | None) -> str:
    """`file:line`, as editors and terminals understand it."""
    return f"{path}:{line}" if line else str(path)
