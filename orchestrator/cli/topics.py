"""What `lorry help TOPIC` tells: each topic drawn from the table that the code itself uses."""

from __future__ import annotations

from collections.abc import Callable

ENVIRONMENT: dict[str, str] = {
    "LORRY_HOME": "Folder of runs and results; the platform's state folder without it.",
    "VAST_API_KEY": "Your key at Vast.ai. It never leaves this computer but for Vast.ai itself.",
    "RUNPOD_API_KEY": "Your key at RunPod. It never leaves this computer but for RunPod itself.",
    "TENSORDOCK_API_KEY": "Your token at TensorDock. It never leaves this computer but for TensorDock itself.",
    "HF_TOKEN": "Your token at the model hub, for bases with a licence. A machine gets it only for the download, in memory.",
    "HF_ENDPOINT": "Another address for the model hub.",
    "LORRY_VAST_URL": "Another base address for Vast.ai's API: the practice cloud's, for a rehearsal.",
    "LORRY_RUNPOD_URL": "Another base address for RunPod's REST API.",
    "LORRY_RUNPOD_GRAPHQL_URL": "Another base address for RunPod's GraphQL API, which is asked for the balance only.",
    "LORRY_TENSORDOCK_URL": "Another base address for TensorDock's API.",
    "LORRY_SANDBOX_URL": "A practice cloud that is running elsewhere, instead of one that lorry starts by itself.",
    "LORRY_SANDBOX_KEY": "The key of that practice cloud, as `lorry sandbox --json` printed it.",
    "LORRY_SANDBOX_MACHINE": "Set by the practice cloud on its machines' processes, so that it finds them again.",
    "LORRY_KEEPER": "off: runs get no keeper, and lost machines are only told of; for scripts that look after their runs themselves.",
    "LORRY_PRACTICE_GPU": "Set by the practice cloud on its machines: the card that they play. Believed only of machines on this computer.",
    "LORRY_CRASH_AT": "For tests: where lorry kills itself; `orchestrator/crashpoints.py` lists the places.",
    "LORRY_CRASH_WITH": "For tests: the signals that lorry sends itself there, instead of SIGKILL.",
    "LORRY_SUPERVISOR_PID": "Set by the trainer's supervisor for its worker, which ends when its supervisor has.",
    "NO_COLOR": "Set to anything: no colours.",
    "COLUMNS": "Width of tables when the output is no terminal.",
}
"""Every variable that is read. A test looks for the `LORRY_` ones in the code."""

_RECEIPT = "the receipt: run, status, exit_code, jobs, made_with, machines, cost, report; events before it are JSON lines on stderr"

JSON: dict[str, str] = {
    "init": "file, recipe, jobs: name, dataset, trigger",
    "import": "file, jobs: name, trainer, read (files), keys;"
    " carried, meaningless and listed (key, value, and to, why, hint), differs (what, hint)",
    "check": "a list of findings: code, path, line, message, hint, severity; empty when nothing is wrong",
    "plan": "candidates, best first, each with every phase's seconds and dollars, meters, memory, settings; reason, alternatives, hosted;"
    " with --what-if: variants; with --calibration: calibration, a row for each phase",
    "run": _RECEIPT,
    "add": "run, added: names, taken: whether the run has them by now, expected_usd",
    "train": "jobs, in the words of the receipt, and exit_code",
    "ps": "a list of receipts, each with driven and kept: whether a lorry on this computer, or its keeper, looks after it",
    "logs": "JSON lines, one event each",
    "attach": _RECEIPT,
    "pull": "run, fetched: number of files, folder",
    "report": "run, report: path of the page",
    "stop": _RECEIPT,
    "resume": _RECEIPT,
    "down": _RECEIPT,
    "reap": "a list of machines and what became of each",
    "cost": "a list: run, status, estimated_usd, metered_usd, billed_usd, cap_usd, phases, paid (seconds, in_steps_s, share),"
    " jobs (name, seconds, usd), lines, differences (usd, why), bills",
    "offers": "a list of offers",
    "convert": "file, sha256, family, format, layers, ranks, kept_energy, from, changed_beside, loads_in: program, loads (yes, ...), why",
    "login": "provider, account, id, balance_usd, auto_pay, lacks, kept_in, address, overruled_by; never the key",
    "logout": "provider, was_kept, still_in_environment",
    "doctor": "checks: subject, health (ok, warning, trouble), said, hint, exit_code; with --drill: what was seen, step by step",
    "sandbox": "addresses and keys of the practice cloud, for each tongue that it speaks; `lorry sandbox bill`: what its meter has seen",
    "help": "the topic's table",
    "an error": "error (a code), message, hint, exit_code, findings; printed instead of the document",
}
"""What `--json` puts on stdout. All talk goes to stderr, whatever the command."""


def exit_codes() -> dict[str, str]:
    """What a script may branch on."""
    from orchestrator.errors import EXIT_CODES

    return {str(code): meaning for code, meaning in EXIT_CODES.items()}


def environment() -> dict[str, str]:
    """What can be set from outside."""
    return ENVIRONMENT


def json_documents() -> dict[str, str]:
    """What `--json` prints."""
    return JSON


def config() -> dict[str, str]:
    """Every key of lorry.toml, from the models that read it."""
    from orchestrator.file.keys import TABLES

    return {f"{title} {name}".strip(): info.description or "" for title, _, keys in TABLES for name, info in keys.items()}


TOPICS: dict[str, tuple[str, Callable[[], dict[str, str]]]] = {
    "config": ("every key of lorry.toml", config),
    "environment": ("variables that lorry reads", environment),
    "exit-codes": ("what each exit code means", exit_codes),
    "json": ("what --json prints", json_documents),
}
"""Name -> what it is about, and the table."""
