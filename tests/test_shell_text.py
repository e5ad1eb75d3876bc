"""No text of the user's or of a machine's ever stands inside a shell program: read from the code, and tried with hostile names."""

from __future__ import annotations

import ast
import inspect
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import commands
from tests.sources import parsed

ROOT = Path(__file__).parent.parent
FILES = sorted(file for package in ("orchestrator", "providers", "trainer") for file in (ROOT / package).rglob("*.py"))

QUOTERS = {
    "orchestrator/shell.py",  # every command to a machine: the one place
    "orchestrator/ship.py",  # rsync's own -e, which is no shell
    "orchestrator/machines/guard.py",  # the guard's start, of our own text and numbers alone
    "orchestrator/safety/timer.py",  # this computer's own timer, and telling what was run
    "providers/ssh.py",  # logs in as the user does, before there is a lease
    "providers/vast.py",
    "providers/runpod.py",
    "providers/tensordock.py",  # what a cloud's create call runs at the machine's start
}
SHELLS = {"sh", "bash", "/bin/sh", "/bin/bash"}


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def nodes(file: Path) -> list[ast.AST]:
    return [*ast.walk(parsed(file))]


def test_words_are_quoted_for_a_shell_in_these_places_only():
    quoting = {
        named(file)
        for file in FILES
        for node in nodes(file)
        if (isinstance(node, ast.Attribute) and node.attr in {"join", "quote"} and ast.unparse(node.value) == "shlex")
        or (isinstance(node, ast.ImportFrom) and node.module == "shlex")
    }
    practice = {name for name in quoting if name.startswith("providers/sandbox/")}  # a cloud of its own, which runs what its customers say
    assert quoting - practice <= QUOTERS
    assert {"orchestrator/shell.py", "providers/ssh.py"} <= quoting, "the scan no longer sees quoting"


def test_every_program_for_a_shell_is_a_text_that_stands_in_the_code():
    """`sh -c TEXT`: a literal, or a constant of the module. Never an f-string, a sum or an argument."""
    seen, wrong = 0, []
    for file in FILES:
        for node in nodes(file):
            if not isinstance(node, ast.List | ast.Tuple):
                continue
            words = [one.value if isinstance(one, ast.Constant) else None for one in node.elts]
            for at, (word, option) in enumerate(pairwise(words)):
                if word in SHELLS and option == "-c":
                    seen += 1
                    program = node.elts[at + 2]
                    fixed = isinstance(program, ast.Constant) or (isinstance(program, ast.Name) and program.id.isupper())
                    wrong += [] if fixed else [f"{named(file)}:{node.lineno}"]
    assert seen > 7
    assert wrong == []


def test_nothing_is_handed_to_a_shell_of_this_computer():
    banned = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"}
    for file in FILES:
        for node in nodes(file):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in banned, named(file)
                assert not [k for k in node.keywords if k.arg == "shell" and ast.unparse(k.value) == "True"], f"{named(file)}:{node.lineno}"


def test_all_that_is_said_to_a_machine_is_worded_in_commands():
    """So that one page tells all of it."""
    seen = 0
    for file in FILES:
        for node in nodes(file):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in ("run", "check"):
                continue
            if ast.unparse(node.func.value) in ("shell", "machine.shell", "self.machine.shell"):
                seen += 1
                said = ast.unparse(node.args[0])
                assert said.startswith("commands.") or said == "command", f"{named(file)}:{node.lineno} says {said}"
    assert seen > 10


# -- and tried ------------------------------------------------------------------------------------

HOSTILE = st.one_of(
    st.sampled_from(
        ["$(touch pwned)", "`touch pwned`", "; touch pwned #", "a b", "'", '"', "\\", "*", "~", "$HOME", "a\nb", "&", "|", "-rf", "ü"]
    ),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=20),
)
SPEAKING = [
    function
    for name, function in inspect.getmembers(commands, inspect.isfunction)
    if function.__module__ == commands.__name__ and name not in ("root", "environment")
]


def called(function: object, text: str) -> list[str]:
    """Its words, with `text` wherever it takes one."""
    values: dict[str, object] = {"int": 7, "bool": True, "str": text, "Iterable[str]": [text], "Sequence[str]": [text]}
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    given = {one.name: values[str(one.annotation)] for one in parameters}
    return function(**given)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("function", SPEAKING, ids=lambda function: function.__name__)
@given(text=HOSTILE)
def test_a_hostile_name_changes_no_word_but_its_own(function: object, text: str):
    """A shell's program is the same for every name, and there are as many words as for a tame one."""
    tame, hostile = called(function, "Tame-Name"), called(function, text)
    assert len(tame) == len(hostile)
    for before, after in zip(tame, hostile, strict=True):
        assert after == before.replace("Tame-Name", text)
    if tame[:2] == ["sh", "-c"]:
        assert "Tame-Name" not in tame[2]


@pytest.mark.parametrize("function", [commands.tail, commands.remove, commands.stop, commands.make_folders], ids=lambda f: f.__name__)
def test_a_shell_that_is_told_a_hostile_name_takes_it_for_a_name(function: object, tmp_path: Path):
    for text in ("$(touch pwned)", "`touch pwned`", "; touch pwned #", "x' ; touch pwned '"):
        subprocess.run(called(function, text), cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert not (tmp_path / "pwned").exists()


def test_every_function_that_speaks_to_a_machine_was_tried():
    assert len(SPEAKING) > 12
