"""The timer: what is written for each system is what that system's own parser reads, and to install twice is to install once."""

from __future__ import annotations

import configparser
import io
import os
import plistlib
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli import main
from orchestrator.errors import UsageError
from orchestrator.safety import timer
from orchestrator.safety.timer import (
    Job,
    cron_line,
    install,
    launchd_agent,
    plan_for,
    remove,
    systemd_units,
    timer_state,
    windows_task,
    with_cron_line,
)

ODD = '/home/zoë o\'hara/50% of "it"\\$HOME'
"""A folder that no format may choke on."""
JOBS = [
    Job(python="/usr/bin/python3", home=None, every_min=10),
    Job(python=f"{ODD}/bin/python", home=ODD, every_min=60),
    Job(python="C:\\Program Files\\Python\\python.exe", home="C:\\Users\\Zoë & co\\lorry", every_min=1),
]
TASK = f"{{{timer.TASK_NAMESPACE}}}"


@pytest.mark.parametrize("job", JOBS)
def test_systemd_reads_its_units(job: Job):
    for text, section in zip(systemd_units(job), ("Service", "Timer"), strict=True):
        parser = configparser.ConfigParser(interpolation=None, strict=True)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(text)
        assert section in parser
        assert parser["Unit"]["Description"]
    service, timed = systemd_units(job)
    assert "KillMode=process" in service, "what the timer takes up must outlive it"
    assert ("LORRY_HOME" in service) == (job.home is not None)
    assert "Persistent=true" in timed


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_itself_finds_nothing_wrong_with_them(tmp_path: Path):
    program = tmp_path / 'a $ 50% "bin"' / "python"
    program.parent.mkdir()
    program.symlink_to(sys.executable)
    units = systemd_units(Job(python=str(program), home=str(tmp_path), every_min=10))
    for name, text in zip(("lorry-reap.service", "lorry-reap.timer"), units, strict=True):
        (tmp_path / name).write_text(text)
    call = ["systemd-analyze", "verify", "--user", "--man=no", *map(str, tmp_path.glob("lorry-reap.*"))]
    found = subprocess.run(call, capture_output=True, text=True, check=False, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    assert [line for line in found.stderr.splitlines() if "lorry-reap" in line] == []
    (tmp_path / "lorry-reap.timer").write_text(units[1].replace("OnCalendar=*:0/10", "OnCalendar=never"))
    found = subprocess.run(call, capture_output=True, text=True, check=False, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    assert "lorry-reap.timer" in found.stderr, "the check would see a mistake"


@pytest.mark.parametrize("job", JOBS)
def test_launchd_gets_a_property_list(job: Job, tmp_path: Path):
    document = plistlib.loads(launchd_agent(job, tmp_path / "reap.log"))
    assert document["ProgramArguments"] == [job.python, "-P", "-m", "orchestrator.cli", "reap", "--yes", "--expired"]
    assert document["StartInterval"] == job.every_min * 60
    assert document.get("EnvironmentVariables", {}).get("LORRY_HOME") == job.home


@pytest.mark.parametrize("job", JOBS)
def test_windows_gets_a_task_whose_program_python_understands(job: Job, monkeypatch: pytest.MonkeyPatch):
    task = ET.fromstring(windows_task(job).decode("utf-16").partition("?>")[2])
    assert task.tag == f"{TASK}Task"
    assert task.findtext(f".//{TASK}Command") == job.python
    assert task.findtext(f".//{TASK}Interval") == f"PT{job.every_min}M"
    arguments = task.findtext(f".//{TASK}Arguments") or ""
    code = _split_as_windows_does(arguments)[-1]
    called: list[list[str]] = []
    monkeypatch.setattr("orchestrator.cli.main", called.append)
    monkeypatch.setenv("LORRY_HOME", "another")
    with pytest.raises(SystemExit):
        exec(code, {})
    assert called == [["reap", "--yes", "--expired"]]
    assert os.environ["LORRY_HOME"] == (job.home or "another")


def _split_as_windows_does(line: str) -> list[str]:
    """Words of a command line by the rules of Microsoft's C runtime: backslashes count before quotes only."""
    words, word, quoted, i = [], "", False, 0
    while i < len(line):
        slashes = len(line[i:]) - len(line[i:].lstrip("\\"))
        i += slashes
        if i < len(line) and line[i] == '"':
            word += "\\" * (slashes // 2)
            if slashes % 2:
                word += '"'
            else:
                quoted = not quoted
            i += 1
        elif slashes:
            word += "\\" * slashes
        elif line[i] == " " and not quoted:
            words, word, i = [*words, word], "", i + 1
        else:
            word, i = word + line[i], i + 1
    return [*words, word]


@pytest.mark.parametrize("job", JOBS[:2])
def test_cron_runs_the_line_as_the_shell_reads_it(job: Job, tmp_path: Path):
    line = cron_line(job, tmp_path / "a 100% log")
    minutes, rest = line.split(" * * * * ")
    assert minutes in {"*/10", "0"}
    assert "%" not in rest.replace("\\%", ""), "to cron it is the end of the line"
    said = shlex.split(rest.replace("\\%", "%"), comments=True)
    assert said[-2:] == [f">>{tmp_path}/a 100% log", "2>&1"]
    assert said[-9:-2] == [job.python, "-P", "-m", "orchestrator.cli", "reap", "--yes", "--expired"]
    assert said[:-9] == ([f"LORRY_HOME={job.home}"] if job.home else [])


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp"])), max_size=6))
def test_a_crontab_keeps_every_line_that_is_not_ours(lines: list[str]):
    before = "".join(f"{line}\n" for line in lines if not line.endswith("# lorry-reap"))
    once = with_cron_line(before, cron_line(JOBS[0], Path("/log")))
    assert with_cron_line(once, cron_line(JOBS[1], Path("/log"))).count("# lorry-reap") == 1
    assert with_cron_line(once, "") == before


@pytest.mark.parametrize("minutes", [0, -1, 61])
def test_a_timer_that_no_system_can_keep_is_refused(minutes: int, tmp_path: Path):
    with pytest.raises(UsageError, match="cannot come"):
        install(tmp_path, minutes)


# -- the system: programs that write down how they are called -----------------------------------------------


class System:
    """A computer whose system programs are scripts of ours: one for each that is there, and what they were called with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.home, self.lorry_home = folder / "bin", folder / "user", folder / "lorry"
        for path in (self.folder, self.home, self.lorry_home):
            path.mkdir()
        self.calls = folder / "calls"
        self.calls.touch()
        monkeypatch.setenv("PATH", f"{self.folder}:/usr/bin:/bin")
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setenv("LORRY_HOME", str(self.lorry_home))
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        for name in ("systemctl", "launchctl", "schtasks", "crontab"):
            self.has(name, "exit 1")

    def has(self, name: str, script: str = "exit 0") -> None:
        file = self.folder / name
        file.write_text(f'#!/bin/sh\necho {name} "$@" >>{shlex.quote(str(self.calls))}\n{script}\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def has_crontab(self, text: str | None) -> Path:
        tab = self.folder / "tab"
        if text is not None:
            tab.write_text(text)
        self.has(
            "crontab", f'if [ "$1" = - ]; then cat >{tab}; elif [ -e {tab} ]; then cat {tab}; else echo no crontab for me >&2; exit 1; fi'
        )
        return tab


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    return System(tmp_path, monkeypatch)


def test_where_systemd_keeps_time_for_users_it_gets_two_units(system: System):
    system.has("systemctl")
    units = system.home / ".config/systemd/user"
    for every in (10, 5):  # the second changes the first
        done = install(system.lorry_home, every, platform="linux")
        assert f"wrote {units / 'lorry-reap.timer'}" in done
        assert "ran systemctl --user restart lorry-reap.timer" in done
        assert any("enable-linger" in line for line in done)
        assert any("lorry login" in line for line in done)
    assert "0/5" in (units / "lorry-reap.timer").read_text()
    state = timer_state(system.lorry_home, platform="linux")
    assert (state.kind, state.installed, state.running) == ("systemd", True, True)
    assert len(remove(system.lorry_home, platform="linux")) == 3
    assert list(units.iterdir()) == []
    assert remove(system.lorry_home, platform="linux") == []
    assert not timer_state(system.lorry_home, platform="linux").installed


def test_a_timer_that_was_stopped_by_hand_is_seen(system: System):
    system.has("systemctl")
    install(system.lorry_home, platform="linux")
    system.has("systemctl", 'case "$*" in *is-active*) exit 3;; esac')
    state = timer_state(system.lorry_home, platform="linux")
    assert (state.installed, state.running) == (True, False)
    assert "--install-timer" in state.words


def test_without_systemd_cron_gets_a_line_and_keeps_its_own(system: System):
    own = "# mine\n\n0 5 * * * backup\n"
    tab = system.has_crontab(own)
    install(system.lorry_home, platform="linux")
    install(system.lorry_home, 20, platform="linux")
    assert tab.read_text().startswith(own)
    assert tab.read_text().count("# lorry-reap") == 1
    assert timer_state(system.lorry_home, platform="linux").running
    remove(system.lorry_home, platform="linux")
    assert tab.read_text() == own
    assert remove(system.lorry_home, platform="linux") == []


def test_a_user_without_a_crontab_gets_one(system: System):
    tab = system.has_crontab(None)
    install(system.lorry_home, platform="linux")
    assert tab.read_text().count("\n") == 1


def test_a_crontab_that_cannot_be_read_is_not_written_over(system: System):
    system.has("crontab", "echo you are not allowed to use this program >&2; exit 1")
    with pytest.raises(UsageError, match="no timer for users") as caught:
        install(system.lorry_home, platform="linux")
    assert "reap --yes --expired" in caught.value.hint, "what to have run by other means"
    assert "crontab -\n" not in system.calls.read_text()
    assert timer_state(system.lorry_home, platform="linux").kind == ""
    assert remove(system.lorry_home, platform="linux") == []


def test_on_a_mac_the_agent_is_loaded_anew(system: System):
    system.has("launchctl")
    for _ in range(2):
        install(system.lorry_home, platform="darwin")
    agent = system.home / "Library/LaunchAgents/lorry-reap.plist"
    assert plistlib.loads(agent.read_bytes())["EnvironmentVariables"] == {"LORRY_HOME": str(system.lorry_home)}
    calls = [line.split()[1] for line in system.calls.read_text().splitlines()]
    assert calls == ["bootout", "bootstrap"] * 2
    assert timer_state(system.lorry_home, platform="darwin").running
    remove(system.lorry_home, platform="darwin")
    assert not agent.exists()


def test_on_windows_the_task_is_made_from_its_file(system: System):
    system.has("schtasks")
    install(system.lorry_home, platform="win32")
    file = system.lorry_home / "lorry-reap.xml"
    assert ET.parse(io.BytesIO(file.read_bytes())).getroot().tag == f"{TASK}Task"
    assert f"/Create /TN lorry-reap /XML {file} /F" in system.calls.read_text()
    remove(system.lorry_home, platform="win32")
    assert not file.exists()


def test_a_system_that_refuses_is_told_word_for_word(system: System):
    system.has("launchctl", "echo Bootstrap failed: 5 >&2; exit 5")
    with pytest.raises(UsageError, match="Bootstrap failed: 5"):
        install(system.lorry_home, platform="darwin")


def test_the_command_shows_what_it_did(system: System, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    system.has_crontab("")
    assert main(["reap", "--install-timer", "--every", "15"]) == 0
    assert "*/15 * * * *" in capsys.readouterr().err
    assert main(["reap", "--install-timer", "--json"]) == 0
    assert '"kind": "cron"' in capsys.readouterr().out
    assert main(["reap", "--remove-timer"]) == 0
    assert "took the line out" in capsys.readouterr().err
    assert main(["reap", "--remove-timer"]) == 0
    assert "no timer is installed" in capsys.readouterr().err
    assert main(["reap", "--install-timer", "--every", "90"]) == 2


def test_this_computer_has_one_kind_of_timer_or_none():
    """The real programs of whoever runs the tests; nothing is changed."""
    plan = plan_for(JOBS[0], Path("/tmp/log"))
    assert plan is None or plan.kind in {"systemd", "cron", "launchd", "Task Scheduler"}
