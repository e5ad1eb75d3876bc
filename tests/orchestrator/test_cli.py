"""The command line: quick, plain, and never a traceback for a user's mistake."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from PIL import Image

from orchestrator import cli
from orchestrator.cli import COMMANDS, HELP_GROUPS, main, topics
from orchestrator.cli.group import command
from orchestrator.config import load
from orchestrator.console import findings
from orchestrator.errors import EXIT_CODES, Finding, MayStillBill
from providers.errors import AuthError

ROOT = Path(__file__).parent.parent.parent
NO_COMMANDS = {"__init__", "__main__", "common", "crash", "group", "topics"}
"""Files of `cli/` that hold none."""

GOOD = """\
name = "autumn"
[budget]
max_usd = 5
[[lora]]
name = "lisa"
dataset = "lisa"
base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A folder of its own for each test, to work in and to keep runs in."""
    monkeypatch.setenv("LORRY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lorry(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    call = [sys.executable, "-m", "orchestrator.cli", *arguments]
    return subprocess.run(call, capture_output=True, text=True, cwd=cwd, env=given, check=False, encoding="utf-8")


def pictures(folder: Path, count: int = 3, caption: str = "lisabp woman, smiling") -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (520, 512 + number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)


# --- the table -------------------------------------------------------------------------------------------


def commands_on_disk() -> dict[str, str]:
    """Command -> module: every function, or app with commands, that a command module defines in public."""
    found = {}
    for file in sorted((ROOT / "orchestrator/cli").glob("*.py")):
        if file.stem in NO_COMMANDS:
            continue
        module = import_module(f"orchestrator.cli.{file.stem}")
        apps = [thing for thing in vars(module).values() if isinstance(thing, typer.Typer)]
        below = [info.callback for app in apps for info in app.registered_commands]  # `lorry sandbox bill` is not `lorry bill`
        for name, thing in vars(module).items():
            defined_here = inspect.isfunction(thing) and thing.__module__ == module.__name__ and thing not in below
            if not name.startswith("_") and (defined_here or thing in apps):
                found[name.rstrip("_").replace("_", "-")] = file.stem
    return found


def test_the_table_is_what_lies_on_disk():
    """A command that is not in the table cannot be called; one that is not on disk breaks when it is."""
    assert {name: entry.module for name, entry in COMMANDS.items()} == commands_on_disk()
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_is_the_docstrings_first_line(name):
    """Help shows the copy in the table, because reading the docstring would import the command."""
    help_text = inspect.cleandoc(command(name).help or "")
    assert COMMANDS[name].summary == help_text.partition("\n")[0]
    assert COMMANDS[name].group in HELP_GROUPS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_a_json_option_and_no_markup(name, capsys):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    _, _, examples = shown.partition("\nExamples:\n")
    assert re.search(rf"^  lorry {name}\b", examples, re.MULTILINE)
    assert "--json" in shown
    assert "-h, --help" in shown
    assert not re.search(r"``|\[/?(bold|dim|red|cyan)\]|\*\*|\\b", shown)
    assert max(map(len, shown.splitlines())) <= 100


def test_the_help_lists_every_command_under_its_heading(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == shown
    for name, entry in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(entry.summary[:30])}", shown, re.MULTILINE)
    headings = [line.rstrip(":") for line in shown.splitlines() if line.rstrip(":") in HELP_GROUPS]
    assert headings == [group for group in HELP_GROUPS if any(entry.group == group for entry in COMMANDS.values())]


# --- quick -----------------------------------------------------------------------------------------------


HEAVY = {
    "torch",
    "numpy",
    "PIL",
    "httpx",
    "paramiko",
    "pydantic",
    "rich",
    "jinja2",
    "tree_sitter",
    "tomllib",
    "asyncio",
    "importlib.metadata",
}


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS), ["nonsense"]], ids=" ".join)
def test_help_imports_nothing_that_it_does_not_show(arguments):
    """Read from `sys.modules` of a fresh Python."""
    code = "import sys; from orchestrator.cli import main; main(sys.argv[1:]); sys.stderr.write('\\nMODULES ' + ' '.join(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=True)
    modules = set(answer.stderr.rpartition("MODULES ")[2].split())
    assert "typer" in modules
    assert HEAVY & modules == set()


def test_completion_offers_commands_with_their_summaries():
    assert "check" in lorry(_LORRY_COMPLETE="complete_bash", COMP_WORDS="lorry ch", COMP_CWORD="1").stdout.split()
    shown = lorry(_LORRY_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="lorry ch").stdout
    assert COMMANDS["check"].summary.partition(";")[0] in shown


# --- a mistake gets an answer ----------------------------------------------------------------------------


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert main(["chek"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: there is no command 'chek'\nhint: did you mean `lorry check`?\n")


@pytest.mark.parametrize("arguments", [["check", "--jsn"], ["stop", "a", "b"], ["--nothing"], ["init", "--dataset"], ["\x1b[31mx"]])
def test_a_wrong_call_ends_with_2_and_says_where_help_is(arguments, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "--help`" in said.err
    assert "\x1b" not in said.err
    assert "Traceback" not in said.err


def test_with_json_an_error_is_a_document_as_well(capsys):
    assert main(["check", "--json", "--nothing"]) == 2
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert (document["error"], document["exit_code"]) == ("LRY-USAGE", 2)
    assert document["message"] in said.err


def test_every_finding_is_shown_with_its_place_and_a_caret(home, capsys):
    Path("lorry.toml").write_text(GOOD.replace("max_usd = 5", 'max_usd = 5\nmax_ours = "6"'))
    assert main(["check"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "lorry.toml:4: there is no key `max_ours` in [budget]" in said.err
    assert '    max_ours = "6"\n    ^\n    hint: did you mean `max_hours`?' in said.err


def test_check_prints_findings_as_json(home, capsys):
    Path("lorry.toml").write_text(GOOD.replace("max_usd", "max_usdd"))
    assert main(["check", "--json"]) == 2
    (found,) = json.loads(capsys.readouterr().out)
    assert found.keys() >= {"code", "path", "line", "message", "hint"}
    Path("lorry.toml").write_text(GOOD)
    assert main(["check", "--json"]) == 3
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["code"], found["line"]) == ("LRY-DATA-EMPTY" if Path("lisa").exists() else "LRY-DATA-MISSING", 6)
    pictures(home / "lisa")
    assert main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_of_many_warnings_of_one_kind_a_few_are_told_and_every_error_is(capsys):
    many = [Finding(code="LRY-A", message=f"warned {n}", severity="warning") for n in range(9)]
    errors = [Finding(code="LRY-A", message=f"wrong {n}") for n in range(9)]
    findings([*many, *errors, Finding(code="LRY-B", message="alone", severity="warning")])
    said = capsys.readouterr().err
    assert [f"warned {n} " in said for n in range(9)] == [True] * 3 + [False] * 6
    assert all(f"wrong {n} " in said for n in range(9))
    assert "alone" in said
    assert "warning: 6 more of the kind [LRY-A]\n    hint: lorry check --json names every one\n" in said


def test_check_without_a_config_says_how_to_get_one(capsys):
    assert main(["check"]) == 2
    assert "lorry init" in capsys.readouterr().err


def test_a_good_config_is_told_job_by_job(home, capsys):
    Path("lorry.toml").write_text(GOOD)
    pictures(home / "lisa")
    assert main(["check"]) == 0
    said = capsys.readouterr()
    assert "lisa: 3 pictures, 3 with a caption, 1500 steps" in said.out
    assert said.err == "lorry.toml: nothing stands in the way\n"


@pytest.fixture
def breaking(monkeypatch):
    """`lorry check` raises what the test likes."""

    def break_with(error: BaseException) -> None:
        def check(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("orchestrator.file.check.check", check)
        Path("lorry.toml").write_text(GOOD)

    return break_with


def test_errors_of_all_packages_end_in_their_exit_codes(breaking, capsys):
    breaking(MayStillBill("machine 7 is not known to be gone", hint="see the console"))
    assert main(["check"]) == 10
    assert capsys.readouterr().err == "error: machine 7 is not known to be gone\nhint: see the console\n"
    breaking(AuthError("the key is wrong"))
    assert main(["check"]) == 11


def test_ctrl_c_ends_with_130_and_no_traceback(breaking, capsys):
    breaking(KeyboardInterrupt())
    assert main(["check"]) == 130
    assert capsys.readouterr().err.startswith("error: interrupted\nhint: ")


def test_ctrl_c_while_python_still_starts_is_no_traceback_either(monkeypatch, capsys):
    def called(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_called", called)
    assert main(["check"]) == 130
    assert capsys.readouterr().err == ""


def test_a_mistake_of_ours_is_saved_and_said_in_one_line(breaking, home, capsys):
    breaking(ZeroDivisionError("secret\x1b[2J"))
    assert main(["check", "--json"]) == 1
    said = capsys.readouterr()
    (saved,) = (home / "home/errors").iterdir()
    assert str(saved) in said.err
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err
    assert "Traceback" in saved.read_text()
    assert json.loads(said.out)["exit_code"] == 1


def test_a_full_disk_does_not_hide_the_mistake(breaking, home, capsys):
    (home / "home").write_text("a file where the folder should be")
    breaking(ZeroDivisionError("x"))
    assert main(["check"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_terminal_that_knows_no_unicode_is_no_reason_to_die(home):
    (home / "café ✓.toml").write_text("x")
    answer = lorry("check", "café ✓.toml", cwd=home, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr


def test_a_reader_who_has_seen_enough_is_no_error(home):
    call = f"{sys.executable} -m orchestrator.cli help config | head -1; echo ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", call], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert answer.stdout.splitlines()[-1] == "0"
    assert answer.stderr == ""


def test_on_a_terminal_nothing_is_drawn_that_a_pipe_would_not_show(home):
    """No boxes, no escape sequences: words, for screen readers and logs alike."""
    Path("lorry.toml").write_text(GOOD.replace("max_usd", "max_usdd"))
    read, write = pty.openpty()
    call = [sys.executable, "-m", "orchestrator.cli", "check"]
    with subprocess.Popen(call, stdout=write, stderr=write, stdin=write, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        process.wait(20)
    shown = os.read(read, 65536).decode()
    os.close(read)
    os.close(write)
    assert "did you mean `max_usd`?" in shown
    assert "\x1b" not in shown


def test_the_version_is_said(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lorry ")


# --- init ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", ["lisa", "10_lisabp woman", 'Zoë\'s "best" pictures', "a\\b", "日本", "-", "datasets/deep/lisa", "oil painting style"]
)
def test_init_writes_what_check_passes(folder, home, capsys):
    pictures(home / folder)
    assert main(["init", "--dataset", folder]) == 0
    said = capsys.readouterr()
    assert "3 pictures, 3 with a caption" in said.out
    assert "next: lorry check lorry.toml" in said.err
    assert main(["check"]) == 0, capsys.readouterr().err
    (job,) = load(Path("lorry.toml")).jobs
    assert job.dataset == home / folder
    assert job.trigger == "lisabp woman"
    assert job.recipe == ("sd15-style" if "style" in folder else "sd15-character")


def test_init_takes_several_folders_and_names_them_apart(home):
    for folder in ("a/lisa", "b/Lisa", "c/tom"):
        pictures(home / folder, caption="")
    assert main(["init", "style", *(word for folder in ("a/lisa", "b/Lisa", "c/tom") for word in ("--dataset", folder))]) == 0
    config = load(Path("lorry.toml"))
    assert [job.name for job in config.jobs] == ["lisa", "Lisa-2", "tom"]
    assert {job.recipe for job in config.jobs} == {"sd15-style"}
    assert {job.trigger for job in config.jobs} == {None}


def test_init_takes_the_words_of_a_kohya_folder_for_the_trigger(home):
    pictures(home / "lisa/6_lisabp woman", caption="a person")
    assert main(["init", "--dataset", "lisa"]) == 0
    assert load(Path("lorry.toml")).jobs[0].trigger == "lisabp woman"


def test_init_never_writes_over_a_file(home, capsys):
    Path("lorry.toml").write_text("mine")
    assert main(["init"]) == 2
    assert Path("lorry.toml").read_text() == "mine"
    assert "--file" in capsys.readouterr().err
    assert main(["init", "--file", "other.lorry.toml"]) == 0
    assert load(Path("other.lorry.toml")).name == "other"


def test_init_works_into_another_folder(home):
    """Paths in the file are relative to the file."""
    pictures(home / "lisa")
    (home / "runs").mkdir()
    assert main(["init", "--dataset", "lisa", "--file", "runs/a.lorry.toml"]) == 0
    assert load(Path("runs/a.lorry.toml")).jobs[0].dataset.resolve() == home / "lisa"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["init", "charakter"], "character"),
        (["init", "--dataset", "nowhere"], "no folder"),
        (["init", "--file", "nowhere/lorry.toml"], "cannot be written"),
    ],
)
def test_init_refuses_in_words(arguments, says, capsys):
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
    assert not Path("lorry.toml").exists()


def test_init_answers_scripts(home, capsys):
    pictures(home / "lisa")
    assert main(["init", "--dataset", "lisa", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "file": "lorry.toml",
        "recipe": "sd15-character",
        "jobs": [{"name": "lisa", "dataset": "lisa", "trigger": "lisabp woman"}],
    }


# --- topics ----------------------------------------------------------------------------------------------


def test_help_explains_exit_codes_and_environment_from_the_tables(capsys):
    assert main(["help", "exit-codes"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^{code} +{re.escape(meaning[:20])}", shown, re.MULTILINE) for code, meaning in EXIT_CODES.items())
    assert main(["help", "environment", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == topics.ENVIRONMENT


def test_every_variable_of_ours_in_the_code_is_in_the_table():
    """And none is promised that nothing reads."""
    files = [
        file for package in ("orchestrator", "providers", "trainer") for file in (ROOT / package).rglob("*.py") if file.stem != "topics"
    ]
    assert len(files) > 30
    read = {name for file in files for name in re.findall(r"[\"'](LORRY_[A-Z_]+)[\"']", file.read_text(encoding="utf-8"))}
    assert read == {name for name in topics.ENVIRONMENT if name.startswith("LORRY_")}


def test_the_json_topic_knows_every_command():
    assert set(topics.JSON) - {"an error"} == set(COMMANDS)


@pytest.mark.parametrize("topic", [*topics.TOPICS, *COMMANDS])
def test_every_topic_is_told_and_none_is_wider_than_the_terminal(topic, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["help", topic]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) > 2
    assert max(map(len, shown.splitlines())) <= 100


def test_a_topic_that_is_none_is_answered_with_the_nearest(capsys):
    assert main(["help", "exit-code"]) == 2
    assert "did you mean `lorry help exit-codes`?" in capsys.readouterr().err


def test_the_installed_command_is_this_main():
    """pyproject's entry point names it."""
    assert 'lorry = "orchestrator.cli:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert cli.main is main
