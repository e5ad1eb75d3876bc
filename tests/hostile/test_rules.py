"""Rules that keep a stranger's bytes data, read from the code itself. Each scan says that it found something to read."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from orchestrator import console
from tests.sources import parsed

ROOT = Path(__file__).parents[2]
FILES = sorted(file for package in ("orchestrator", "providers", "trainer", "templates") for file in (ROOT / package).rglob("*.py"))

OPENS_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
"""Modules whose files run code when they are read."""
RUNS_CODE = {
    "torch.load",
    "np.load",
    "numpy.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "os.system",
    "os.popen",
}
"""Calls that may. `torch.load` with weights_only=True has been made to, too."""


def test_the_scan_finds_the_code():
    assert len(FILES) > 150


def trees() -> Iterator[tuple[str, ast.Module]]:
    for file in FILES:
        yield file.relative_to(ROOT).as_posix(), parsed(file)


def opens_code(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in OPENS_CODE]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OPENS_CODE:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            words = ast.unparse(node.func)
            shell = any(word.arg == "shell" and ast.unparse(word.value) == "True" for word in node.keywords)
            found += [words] if words in RUNS_CODE or shell else []
    return found


def test_no_file_of_ours_opens_a_pickle_or_runs_what_it_reads():
    assert opens_code(ast.parse("import pickle\ntorch.load(x)\nrun('x', shell=True)")) == ["pickle", "torch.load", "run"]
    assert {name: found for name, tree in trees() if (found := opens_code(tree))} == {}


def test_only_the_console_makes_what_draws():
    """Rich writes what it is given; the one that `console.rich_console` makes does not."""
    makers = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"Console", "get_console", "rprint", "print_json"}
    }
    assert makers <= {"orchestrator/console.py"}
    source = (ROOT / "orchestrator/console.py").read_text(encoding="utf-8")
    writes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".write")]
    assert len(writes) == 2, "every line goes out by `_write`, a question by `ask`"
    assert all("harmless(" in ast.unparse(node) or "plain(" in ast.unparse(node) for node in writes)


def test_the_page_takes_no_text_for_markup():
    page = (ROOT / "templates/report.html.j2").read_text(encoding="utf-8")
    assert "{{" in page
    assert "|safe" not in page.replace(" ", "")
    assert "autoescape" not in page
    assert "Markup" not in (ROOT / "orchestrator/report/page.py").read_text(encoding="utf-8")


@given(text=st.text() | st.sampled_from(["\x1b]0;x\x07", "[red]x[/]", "[link=http://x]y[/link]", "\x9b31m", "a\u202eb"]))
@settings(max_examples=100)
def test_whatever_is_drawn_or_said_carries_no_control(text: str):
    """A string, a table cell and a rich text, by every way there is out of this program."""
    with pytest.MonkeyPatch.context() as patch:
        said = io.StringIO()
        patch.setattr("sys.stdout", said)
        patch.setattr("sys.stderr", said)
        table = Table(text[:40], box=None)
        table.add_row(text)
        table.add_row(Text(text))
        console.show(table)
        console.show(text)
        for say in (console.out, console.talk, console.warn):
            say(text)
        console.error(ValueError(text))
        console.json_document({"x": text})
    assert [c for c in said.getvalue() if not (c.isprintable() or c in "\n\t")] == []
    assert "[red]" not in text or "[red]x[/]" in said.getvalue(), "a stranger's brackets are no markup"
