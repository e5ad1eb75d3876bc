"""The rules of the protocol, each with the edit that takes it out of the code: without any of them the simulation must fail.

An edit names text that stands in its file exactly once. When the code moves on, `Rule.without` says so, and the edit moves with it.
"""

# ruff: noqa: E501  an edit is code as it stands
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, and how the code looks without it."""

    says: str
    module: str
    edits: tuple[tuple[str, str], ...]

    def without(self, source: str) -> str:
        """`source` with the rule taken out. Raises `LookupError` when its place is not found."""
        for old, new in self.edits:
            if source.count(old) != 1:
                raise LookupError(f"{self.module}: {source.count(old)} places read {old!r}; one is needed to take out: {self.says}")
            source = source.replace(old, new)
        return source


LEASE = "orchestrator.lease"

RULES: dict[str, Rule] = {
    "intent-first": Rule(
        "the intent is in the ledger before the create is sent",
        "orchestrator.ledger",
        (
            (
                '        crashpoint(f"{kind}-unwritten")\n',
                "        if kind == Signal.INTENT:\n            self._late = entry\n            self._book = self._book.and_then(entry)\n            self.entries.append(entry)\n            return entry\n",
            ),
            (
                "            file.write(to_line(entry))\n",
                "            file.write((to_line(self._late) if self._late else b'') + to_line(entry))\n            self._late = None\n",
            ),
            ("        self._book = Book(self.entries)\n", "        self._book = Book(self.entries)\n        self._late: Any = None\n"),
        ),
    ),
    "create-once": Rule("a create is sent once", "providers.wrappers", ((' if method != "launch" else 1', ""),)),
    "label-in-doubt": Rule(
        "a create in doubt is looked for by its label",
        LEASE,
        (
            (
                "                    if not is_ours(found.label, self.label) or found.id in others:",
                "                    if found.label is not None:",
            ),
        ),
    ),
    "cut-labels": Rule(
        "a label cut by its cloud is still ours", LEASE, (("    return found == label or (", "    return found == label or (0 and "),)
    ),
    "grace-window": Rule("absence is believed after a window", LEASE, (("GRACE_S = 180.0", "GRACE_S = 10.0"),)),
    "steady-window": Rule(
        "the window is counted by a clock that nobody sets",
        LEASE,
        (
            (
                "        begun = self.clock.monotonic_s()\n        while True:\n            is_late",
                "        begun = self.clock.monotonic_s() - max(0.0, (self.clock.now() - self.ledger.book().attempts[self.number].intended_at).total_seconds())\n        while True:\n            is_late",
            ),
        ),
    ),
    "strict-listing": Rule(
        "a listing that cannot be read is no empty listing",
        "providers.wrappers",
        (
            (
                '        return self._call("instances", (), self.inner.instances)\n',
                '        try:\n            return self._call("instances", (), self.inner.instances)\n        except ProviderError:\n            return ()\n',
            ),
        ),
    ),
    "ids-in-errors": Rule(
        "an id in an error is a machine", LEASE, (("ids = err.instance_ids if isinstance(err, ProviderError) else ()", "ids = ()"),)
    ),
    "seen-by-id": Rule(
        "gone means that each instance is described as gone",
        LEASE,
        (("left = [i for i in ids if provider.describe(i).status is not InstanceStatus.GONE]", "left = []"),),
    ),
    "destroy-again": Rule(
        "a destroy is repeated until it is seen to have worked",
        LEASE,
        (
            (
                "    try:\n        provider.terminate(instance_id)\n",
                "    if instance_id in _asked(provider):\n        return lives, trouble\n    _asked(provider).add(instance_id)\n    try:\n        provider.terminate(instance_id)\n",
            ),
            (
                "def _cannot_tell(",
                "def _asked(provider: Any) -> set[str]:\n    return provider.__dict__.setdefault('asked', set())  # type: ignore[no-any-return]\n\n\ndef _cannot_tell(",
            ),
        ),
    ),
    "two-looks": Rule(
        "gone is seen twice in a row", LEASE, (("CLEAN_LOOKS, LOOK_AGAIN_S = 2, 1.0", "CLEAN_LOOKS, LOOK_AGAIN_S = 1, 1.0"),)
    ),
    "young-machines": Rule(
        "the absence of a machine never seen may be its youth",
        LEASE,
        (("clean >= CLEAN_LOOKS and ((whole and not unseen) or looked >= GRACE_S)", "clean >= CLEAN_LOOKS"),),
    ),
    "working-key": Rule(
        "gone is believed only with a key that works",
        LEASE,
        (
            ("            _prove_key(provider, label, account)\n        except Exception", "        except Exception"),
            ("                    _prove_key(self.provider, self.label, self.account)", "                    pass"),
        ),
    ),
    "same-account": Rule(
        "gone is believed only with a key of the account that rented",
        LEASE,
        (("if account and told and told != account:", "if not told:"),),
    ),
    "no-end-by-timeout": Rule(
        "running out of patience closes nothing",
        LEASE,
        (
            (
                '            raise MayStillBill(\n                f"{provider.name} instance',
                "            return 'patience is over'\n            raise MayStillBill(\n                f\"{provider.name} instance",
            ),
        ),
    ),
    "exit-ten-wins": Rule(
        "an open lease wins over whatever else happened",
        "orchestrator.report.receipt",
        (("return not folder.is_driven and bool(folder.book().open_attempts)", "return False and bool(folder)"),),
    ),
    "book-named": Rule(
        "the ledger's name is synced, whoever made the file",
        "orchestrator.ledger",
        (("if not self._named:", "if False and not self._named:"),),
    ),
    "torn-tail": Rule("a torn tail swallows no entry", "orchestrator.ledger", (("if not _ends_a_line(self._path):", "if False:"),)),
    "hashes": Rule(
        "a file is believed when its hash is the one that was listed",
        "orchestrator.fetch",
        (("if sha256 == committed.sha256:", "if True:"),),
    ),
    "file-synced": Rule(
        "a file is synced before it gets its name",
        "orchestrator.fetch",
        (("            os.fsync(file.fileno())\n", "            file.fileno()\n"),),
    ),
    "name-synced": Rule(
        "a name is synced before it is said to be home", "orchestrator.fetch", (("        sync_folder(final.parent)\n", ""),)
    ),
    "price-again": Rule(
        "the price is read again while a machine trains",
        "orchestrator.cap.terms",
        (("(LOOK_S if self._price() else PAUSE_S)", "(LOOK_S if not self._look_at else inf)"),),
    ),
    "cap-by-client": Rule(
        "the client ends a machine that overruns the cap",
        "orchestrator.trip",
        (("if current is not None and self.most_s", "if False and current is not None and self.most_s"),),
    ),
}
"""Short name -> rule."""


class _Loader(SourceFileLoader):
    """Loads a module as it would be without the rule; leaves no bytecode behind."""

    rule: Rule

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text(encoding="utf-8")
        return compile(self.rule.without(source), self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Puts the loader in place of the usual one, for one module."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.rule.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        loader = _Loader(fullname, spec.origin)
        loader.rule = self.rule
        spec.loader = loader
        return spec


def take_out(name: str) -> None:
    """Make this process run without the rule. Before its module is imported."""
    rule = RULES[name]
    assert rule.module not in sys.modules, f"{rule.module} is imported already"
    sys.meta_path.insert(0, _Finder(rule))
