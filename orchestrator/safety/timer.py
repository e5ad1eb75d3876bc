"""`lorry reap --yes --expired`, by the system's own timer: what ends machines when nobody types anything any more.

Writes what the system's way of keeping time reads: a systemd user timer, a launchd agent, a task for Windows' Task Scheduler, or a line
for cron. The texts are made by pure functions, one a system; `install`, `remove` and `timer_state` touch the system.
"""

from __future__ import annotations

import os
import plistlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from orchestrator.errors import UsageError

NAME = "lorry-reap"
EVERY_MIN = 10
COMMAND = ("reap", "--yes", "--expired")
KEYS = "it sees no variables of your shell: keep each cloud's key with `lorry login`"
RUN_S = 20
"""A command of the system's that does not answer for so long will not."""
TASK_NAMESPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be run, and how often."""

    python: str
    home: str | None
    """LORRY_HOME; None where the platform's own folder is used."""
    every_min: int

    def __post_init__(self) -> None:
        if not 1 <= self.every_min <= 60:
            raise ValueError(f"a timer comes every 1 to 60 minutes, got {self.every_min}")

    @property
    def argv(self) -> list[str]:
        """The command line."""
        return [self.python, "-P", "-m", "orchestrator.cli", *COMMAND]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What installing does on one kind of system, and what removing does."""

    kind: str
    files: Mapping[Path, bytes]
    on: Sequence[Sequence[str]] = ()
    """Commands after the files are written; each may be run again."""
    off: Sequence[Sequence[str]] = ()
    """Commands before the files are removed; they may fail where nothing is installed."""
    ask: Sequence[str] = ()
    """The command that succeeds while the timer runs."""
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerState:
    """What `lorry doctor` tells of the timer."""

    kind: str
    """systemd, launchd, Task Scheduler, cron; empty where the system has none of them."""
    installed: bool
    running: bool
    words: str


# --- the texts: pure ------------------------------------------------------------------------------------


def systemd_units(job: Job) -> tuple[str, str]:
    """The service and its timer. `Persistent`: a time that was slept through is made up for at once."""
    argv = [*([f"LORRY_HOME={job.home}"] if job.home else []), *job.argv]
    every = "*:0" if job.every_min == 60 else f"*:0/{job.every_min}"
    service = (
        "[Unit]\nDescription=End rented machines of lorry whose time is over\n\n"
        f"[Service]\nType=oneshot\nExecStart=/usr/bin/env {' '.join(map(_unit_word, argv))}\nTimeoutStartSec=15min\n"
        "KillMode=process\n"  # the keepers of runs that were found lost live on
        "SuccessExitStatus=10\n"  # something may still bill: the next time goes on; the journal has the words
    )
    timer = (
        f"[Unit]\nDescription=Look every {job.every_min} minutes for rented machines whose time is over\n\n"
        f"[Timer]\nOnCalendar={every}\nRandomizedDelaySec=30\nPersistent=true\n\n[Install]\nWantedBy=timers.target\n"
    )
    return service, timer


def _unit_word(text: str) -> str:
    """One argument in a unit file, whatever is in it. The program itself may not be quoted so, which is why it is `env`."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"'


def launchd_agent(job: Job, log: Path) -> bytes:
    """The property list. Runs that were slept through come as one, when the computer wakes."""
    document: dict[str, object] = {
        "Label": NAME,
        "ProgramArguments": job.argv,
        "StartInterval": job.every_min * 60,
        "RunAtLoad": True,
        "AbandonProcessGroup": True,  # the keepers of runs that were found lost live on
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
    }
    if job.home:
        document["EnvironmentVariables"] = {"LORRY_HOME": job.home}
    return plistlib.dumps(document)


def windows_task(job: Job) -> bytes:
    """The task, in the encoding that `schtasks` reads. A task has no environment of its own, so the program sets it."""
    code = f"import os, sys; os.environ['LORRY_HOME'] = {job.home!r}; " if job.home else "import sys; "
    code += f"from orchestrator.cli import main; sys.exit(main({list(COMMAND)!r}))"
    arguments = subprocess.list2cmdline(["-P", "-c", code])
    text = f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.3" xmlns="{TASK_NAMESPACE}">
  <RegistrationInfo><Description>Ends rented machines of lorry whose time is over</Description></RegistrationInfo>
  <Triggers>
    <TimeTrigger>
      <Repetition><Interval>PT{job.every_min}M</Interval><StopAtDurationEnd>false</StopAtDurationEnd></Repetition>
      <StartBoundary>2026-01-01T00:00:00</StartBoundary>
      <Enabled>true</Enabled>
    </TimeTrigger>
  </Triggers>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <StartWhenAvailable>true</StartWhenAvailable>
    <ExecutionTimeLimit>PT15M</ExecutionTimeLimit>
    <Hidden>true</Hidden>
  </Settings>
  <Actions><Exec><Command>{escape(job.python)}</Command><Arguments>{escape(arguments)}</Arguments></Exec></Actions>
</Task>
"""
    return text.encode("utf-16")


def cron_line(job: Job, log: Path) -> str:
    """One line of a crontab; its end is how it is found again. A `%` would be a new line to cron."""
    home = f"LORRY_HOME={shlex.quote(job.home)} " if job.home else ""
    minutes = "0" if job.every_min == 60 else f"*/{job.every_min}"
    command = f"{home}{shlex.join(job.argv)} >>{shlex.quote(str(log))} 2>&1".replace("%", "\\%")
    return f"{minutes} * * * * {command} # {NAME}"


def with_cron_line(crontab: str, line: str) -> str:
    """The user's crontab with this line in the place of an older one; with none where `line` is empty."""
    kept = [one for one in crontab.splitlines() if not one.endswith(f"# {NAME}")]
    return "".join(f"{one}\n" for one in [*kept, *([line] if line else [])])


# --- the system -----------------------------------------------------------------------------------------


def _ran(argv: Sequence[str], stdin: str = "") -> tuple[int, str]:
    """Exit code and words of a command; 127 where there is no such."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=RUN_S, check=False)
    except (FileNotFoundError, PermissionError):
        return 127, f"there is no {argv[0]}"
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]} does not answer"
    return done.returncode, done.stdout or done.stderr


def plan_for(job: Job, log: Path, *, platform: str = sys.platform, ran: Callable[..., tuple[int, str]] = _ran) -> Plan | None:
    """How a timer is kept on this system; None where nothing keeps time for users."""
    if platform == "win32":
        python = Path(job.python).with_name("pythonw.exe")  # opens no window every few minutes
        job = Job(python=str(python) if python.exists() else job.python, home=job.home, every_min=job.every_min)
        file = log.with_name(f"{NAME}.xml")
        create = ["schtasks", "/Create", "/TN", NAME, "/XML", str(file), "/F"]
        off, ask = [["schtasks", "/Delete", "/TN", NAME, "/F"]], ["schtasks", "/Query", "/TN", NAME]
        return Plan(kind="Task Scheduler", files={file: windows_task(job)}, on=[create], off=off, ask=ask)
    if platform == "darwin":
        file, domain = Path.home() / f"Library/LaunchAgents/{NAME}.plist", f"gui/{os.getuid()}"
        off = [["launchctl", "bootout", f"{domain}/{NAME}"]]
        on, ask = [["launchctl", "bootstrap", domain, str(file)]], ["launchctl", "print", f"{domain}/{NAME}"]
        return Plan(kind="launchd", files={file: launchd_agent(job, log)}, on=on, off=off, ask=ask)
    if ran(["systemctl", "--user", "show-environment"])[0] == 0:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user"
        service, timer = systemd_units(job)
        user = ["systemctl", "--user"]
        return Plan(
            kind="systemd",
            files={folder / f"{NAME}.service": service.encode(), folder / f"{NAME}.timer": timer.encode()},
            on=[[*user, "daemon-reload"], [*user, "enable", f"{NAME}.timer"], [*user, "restart", f"{NAME}.timer"]],
            off=[[*user, "disable", "--now", f"{NAME}.timer"]],
            ask=[*user, "is-active", "--quiet", f"{NAME}.timer"],
            advice="it stands still while you are logged out; `loginctl enable-linger` keeps it going then too",
        )
    return Plan(kind="cron", files={}) if _crontab(ran) is not None else None


def _job(every_min: int, home: Path) -> Job:
    return Job(python=sys.executable, home=str(home) if "LORRY_HOME" in os.environ else None, every_min=every_min)


def install(home: Path, every_min: int = EVERY_MIN, *, platform: str = sys.platform) -> list[str]:
    """Write and start the timer, or change the one that there is. Returns what was done, line by line. Raises `UsageError`."""
    if not 1 <= every_min <= 60:
        raise UsageError(f"a timer cannot come every {every_min} minutes", hint="write 1 to 60, as in --every 10")
    job, log = _job(every_min, home), home / "reap.log"
    plan = plan_for(job, log, platform=platform)
    if plan is None:
        line = cron_line(job, log)
        raise UsageError("this system has no timer for users: neither systemd's user manager nor cron answers", hint=f"have it run: {line}")
    if plan.kind == "cron":
        _write_crontab(cron_line(job, log))
        return [f"crontab: {cron_line(job, log)}", _promise(every_min), KEYS]
    done = []
    for file, content in plan.files.items():
        _written(file, content)
        done.append(f"wrote {file}")
    if platform == "darwin":
        _each(plan.off, must=False)  # an agent that is loaded already is not loaded anew
    done += _each(plan.on, must=True)
    return [*done, _promise(every_min), KEYS, *([plan.advice] if plan.advice else [])]


def remove(home: Path, *, platform: str = sys.platform) -> list[str]:
    """Stop the timer and take its files away. Returns what was done; nothing where there is none."""
    plan = plan_for(_job(EVERY_MIN, home), home / "reap.log", platform=platform)
    if plan is None:
        return []
    if plan.kind == "cron":
        if f"# {NAME}" not in (_crontab() or ""):
            return []
        _write_crontab("")
        return ["took the line out of the crontab"]
    if not any(file.exists() for file in plan.files):
        return []
    done = _each(plan.off, must=False)
    for file in plan.files:
        file.unlink(missing_ok=True)
        done.append(f"removed {file}")
    return done


def timer_state(home: Path, *, platform: str = sys.platform) -> TimerState:
    """Whether a timer looks for machines whose time is over. Changes nothing."""
    plan = plan_for(_job(EVERY_MIN, home), home / "reap.log", platform=platform)
    if plan is None:
        return TimerState(kind="", installed=False, running=False, words="this system has no timer for users")
    if plan.kind == "cron":
        installed = running = f"# {NAME}" in (_crontab() or "")
    else:
        installed = all(file.exists() for file in plan.files)
        running = installed and _ran(plan.ask)[0] == 0
    if running:
        return TimerState(kind=plan.kind, installed=True, running=True, words=f"{plan.kind} runs `lorry {' '.join(COMMAND)}`")
    words = "it is installed and does not run" if installed else "no timer is installed"
    return TimerState(kind=plan.kind, installed=installed, running=False, words=f"{words}; `lorry reap --install-timer` sets it up")


def _promise(every_min: int) -> str:
    return f"every {every_min} minutes machines of lorry whose time is over are ended, also those that another computer forgot"


def _written(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as err:
        raise UsageError(f"{file} cannot be written: {err.strerror}") from err


def _each(commands: Sequence[Sequence[str]], *, must: bool) -> list[str]:
    """Run them all; those that succeeded, as they would be typed."""
    done = []
    for argv in commands:
        code, said = _ran(argv)
        if code == 0:
            done.append(f"ran {shlex.join(argv)}")
        elif must:
            raise UsageError(f"{shlex.join(argv)} ended with {code}: {said.strip()}", hint="the files are written; run it by hand")
    return done


def _crontab(ran: Callable[..., tuple[int, str]] = _ran) -> str | None:
    """The user's crontab, empty where there is none yet; None where it cannot be told: then it must not be written over."""
    code, said = ran(["crontab", "-l"])
    if code == 0:
        return said
    return "" if code == 1 and "no crontab" in said.lower() else None


def _write_crontab(line: str) -> None:
    before = _crontab()
    code, said = (1, "it cannot be read") if before is None else _ran(["crontab", "-"], with_cron_line(before, line))
    if code:
        raise UsageError(f"the crontab could not be changed: {said.strip()}")
