"""`lorry doctor`: every check one sentence and a next move, and an exit code that says the worst."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from fakes import FakeClock, FakeCloud, an_order, offer, spec
from hypothesis import given
from hypothesis import strategies as st

import providers
from orchestrator.cli import main
from orchestrator.home import Home
from orchestrator.lease import Lease
from orchestrator.safety.reconcile import label_for
from orchestrator.safety.timer import TimerState
from orchestrator.setup import accounts, doctor
from orchestrator.setup.credentials import KeyStore
from orchestrator.setup.doctor import Check, Health, exit_code, ok, trouble, warning
from orchestrator.setup.versions import FLAWS, flaws_of, numbers, version_in
from providers.base import Account, Instance, InstanceStatus
from providers.sandbox.server import Server

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, and no key anywhere."""
    for name in providers.PROVIDERS:
        if api_key := providers.api_key_of(name):
            for variable in (api_key.variable, *api_key.addresses):
                monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LORRY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# -- versions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "version"),
    [
        ("rsync  version 3.5.0  protocol version 32", "3.5.0"),
        ("rsync  version v3.4.1  protocol version 32", "3.4.1"),
        ("OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.19 27 Jan 2026", "9.2p1"),
        ("OpenSSH_for_Windows_9.5p1, LibreSSL 3.8.2", "9.5p1"),
        ("OpenSSH_10.0, LibreSSL 3.3.6", "10.0"),
        ("something else", ""),
    ],
)
def test_versions_are_read_from_what_programs_say(words: str, version: str) -> None:
    assert version_in(words) == version


@pytest.mark.parametrize(
    ("program", "version", "cves"),
    [
        ("rsync", "3.2.7", {"CVE-2024-12086", "CVE-2026-53791", "CVE-2026-119741"}),
        ("rsync", "3.4.0", {"CVE-2026-43618"}),
        ("rsync", "3.5.0", {"CVE-2026-119741"}),
        ("rsync", "3.5.2", set()),
        ("ssh", "9.5p1", {"CVE-2023-48795", "CVE-2025-26465"}),
        ("ssh", "9.9p1", {"CVE-2025-26465"}),
        ("ssh", "9.9p2", {"CVE-2025-61984"}),
        ("ssh", "10.6p1", set()),
    ],
)
def test_a_version_has_the_flaws_that_later_ones_mended(program: str, version: str, cves: set[str]) -> None:
    found = {cve for flaw in flaws_of(program, version) for cve in flaw.cves}
    assert cves <= found
    assert bool(cves) is bool(found)


def test_the_table_of_flaws_is_in_order_and_its_numbers_are_well_formed() -> None:
    for program in {flaw.program for flaw in FLAWS}:
        rows = [flaw for flaw in FLAWS if flaw.program == program]
        assert [numbers(row.mended_in) for row in rows] == sorted(numbers(row.mended_in) for row in rows)
        assert flaws_of(program, rows[-1].mended_in) == []
        assert flaws_of(program, "0.1") == rows
    cves = [cve for flaw in FLAWS for cve in flaw.cves]
    assert len(cves) == len(set(cves)) > 8
    assert all(cve.startswith(("CVE-2023-", "CVE-2024-", "CVE-2025-", "CVE-2026-")) for cve in cves)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=3), st.lists(st.integers(0, 30), min_size=2, max_size=3))
def test_versions_compare_as_their_numbers_do(one: list[int], other: list[int]) -> None:
    padded = [[*parts, 0][:3] for parts in (one, other)]
    assert (numbers(".".join(map(str, one))) < numbers(".".join(map(str, other)))) is (padded[0] < padded[1])


# -- this computer ----------------------------------------------------------------------------------


def program(folder: Path, name: str, says: str) -> None:
    """A program of that name that says this and nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / name).chmod(0o755)


def of(subject: str) -> Check:
    (found,) = [check for check in doctor.this_computer(Home.from_env()) if check.subject == subject]
    return found


def test_a_sound_computer_is_well_and_nothing_is_asked_of_anybody(home: Path) -> None:
    checks = list(doctor.this_computer(Home.from_env()))
    assert {"Python", "system", "LORRY_HOME", "disk", "rsync", "confinement", "ssh", "paramiko", "keyring", "open files", "terminal"} == {
        check.subject for check in checks
    }
    assert exit_code(checks) == 0
    assert all(check.hint for check in checks if check.health is not Health.OK), "a warning without a next move is noise"
    assert list(home.rglob("*")) == [home / "runs"]


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
@pytest.mark.parametrize(
    ("name", "says", "health", "words"),
    [
        ("rsync", "rsync  version 3.2.7  protocol version 31", Health.WARNING, "CVE-2024-12086"),
        ("rsync", "rsync  version 3.9.0  protocol version 32", Health.OK, "3.9.0"),
        ("rsync", "openrsync: protocol version 29", Health.WARNING, "macOS"),
        ("rsync", "what?", Health.WARNING, "cannot be told"),
        ("ssh", "OpenSSH_8.9p1 Ubuntu-3ubuntu0.10", Health.WARNING, "CVE-2023-48795"),
        ("ssh", "OpenSSH_11.0p1", Health.OK, "11.0p1"),
    ],
)
def test_programs_are_judged_by_what_they_say(
    name: str, says: str, health: Health, words: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", name, says)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    check = of(name)
    assert (check.health, words in check.said, check.exit_code) == (health, True, 0)


def test_programs_that_are_missing_cost_speed_only(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ("SFTP" in of("rsync").said, "SFTP" in of("ssh").said) == (True, True)
    assert {of("rsync").exit_code, of("ssh").exit_code} == {0}


def test_a_home_that_cannot_be_written_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORRY_HOME", str(tmp_path / "file"))
    assert (of("LORRY_HOME").health, of("LORRY_HOME").exit_code) == (Health.TROUBLE, 2)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such bits")
def test_a_home_that_others_can_change_is_warned_of(home: Path) -> None:
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    assert f"chmod go-w {home}" in of("LORRY_HOME").hint


def test_a_lease_that_nobody_looks_after_ends_the_doctor_with_10(home: Path, clock: FakeClock) -> None:
    folder = Home.from_env().new_run("autumn")
    an_order(folder)
    ledger = folder.ledger(clock)
    ledger.record("opened", cap_usd=5, run=folder.id)
    assert exit_code(doctor.runs(Home.from_env())) == 0
    lease = Lease.take(FakeCloud(clock), offer(), spec(), ledger=ledger, clock=clock)
    checks = list(doctor.runs(Home.from_env()))
    assert exit_code(checks) == 10
    assert folder.id in checks[0].said
    assert f"lorry attach {folder.id}" in checks[0].hint
    with folder.driving():
        assert exit_code(doctor.runs(Home.from_env())) == 0, "it is looked after"
    lease.release("done")
    assert exit_code(doctor.runs(Home.from_env())) == 0


@given(st.lists(st.sampled_from([0, 2, 4, 6, 10, 11])))
def test_something_that_may_bill_wins_over_everything_and_a_bad_key_over_the_rest(codes: list[int]) -> None:
    checks = [trouble("x", "y", "z", code) if code else ok("x", "y") for code in codes]
    expected = 10 if 10 in codes else 11 if 11 in codes else next((code for code in codes if code), 0)
    assert exit_code([*checks, warning("x", "y", "z")]) == expected


# -- accounts ---------------------------------------------------------------------------------------


def words_of(account: Account, name: str = "vast") -> tuple[str, int]:
    checks = list(accounts.about(name, account))
    return " | ".join(f"{check.health}: {check.said} {check.hint}" for check in checks), exit_code(checks)


def test_a_right_that_is_lacking_is_told_with_what_it_is_for() -> None:
    said, code = words_of(Account(name="me", lacks=("instance_write", "billing_read", "something_new")))
    assert "trouble: the key lacks `instance_write`: without it lorry cannot rent a machine or end one" in said
    assert "warning: the key lacks `billing_read`: without it lorry cannot read back what a run was charged" in said
    assert "trouble: the key lacks `something_new`" in said, "what we do not know may be what we need"
    assert code == 11
    assert words_of(Account(name="me", lacks=("billing_read",)))[1] == 0
    assert "every right" in words_of(Account(name="me", lacks=()))[0]
    assert "does not tell" in words_of(Account(name="me", lacks=None))[0]


def test_a_card_that_is_charged_is_warned_of_because_no_empty_balance_ends_a_machine_then() -> None:
    assert "will not end a forgotten machine" in words_of(Account(name="me", balance_usd=Decimal(9), auto_pay=True))[0]
    assert "no card is charged" in words_of(Account(name="me", balance_usd=Decimal(9), auto_pay=False))[0]
    assert "is not told" in words_of(Account(name="me", balance_usd=Decimal(9)))[0]
    assert "too little" in words_of(Account(name="me", balance_usd=Decimal("0.40"), auto_pay=False))[0]


class Cloud:
    """As much of a provider as is asked for machines."""

    name = "fake"

    def __init__(self, *labels: str) -> None:
        self.labels = labels

    def account(self) -> Account:
        return Account(name="me")

    def instances(self) -> list[Instance]:
        return [
            Instance(provider="fake", id=str(number), label=label, status=InstanceStatus.RUNNING)
            for number, label in enumerate(self.labels)
        ]


def machines(*labels: str) -> list[Check]:
    return list(accounts._machines(Cloud(*labels), {}, set(), NOW))  # type: ignore[arg-type]


def test_machines_of_lorry_are_told_and_those_that_nobody_wants_end_it_with_10() -> None:
    assert exit_code(machines("somebody-elses", "lorryx")) == 0
    later, before = NOW + timedelta(hours=1), NOW - timedelta(hours=1)
    (elsewhere,) = machines(label_for("autumn-1", 1, later))
    assert (elsewhere.health, elsewhere.exit_code) == (Health.WARNING, 0)
    (over,) = machines(label_for("autumn-1", 1, before))
    assert (over.exit_code, "lorry reap --yes" in over.hint) == (10, True)


# -- the command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("cloud")) as server:
        yield server


def test_without_any_key_it_works_says_so_and_ends_with_0(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr()
    assert "there is no key for any cloud" in said.out
    assert "lorry login PROVIDER, one of" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_a_cloud_that_is_named_and_has_no_key_is_trouble(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "vast", "--json"]) == 11
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 11
    assert [check["said"] for check in document["checks"] if check["subject"] == "vast"] == ["there is no key"]
    assert main(["doctor", "vats"]) == 2


def test_a_cloud_that_cannot_be_reached_is_told_in_words(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a train."""
    monkeypatch.setenv("VAST_API_KEY", "canary-77")
    monkeypatch.setenv("LORRY_VAST_URL", "http://127.0.0.1:9")
    assert main(["doctor"]) == 4
    said = capsys.readouterr()
    assert "http://127.0.0.1:9 cannot be reached" in said.out
    assert "no machine of lorry lives there" not in said.out
    assert "canary-77" not in said.out + said.err


def test_a_real_call_tells_whose_account_it_is_what_is_in_it_and_what_lives_there(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = server.descriptor.document()
    monkeypatch.setenv("RUNPOD_API_KEY", str(told["runpod_api_key"]))
    monkeypatch.setenv("LORRY_RUNPOD_URL", str(told["runpod_rest_url"]))
    monkeypatch.setenv("LORRY_RUNPOD_GRAPHQL_URL", str(told["runpod_graphql_url"]))
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    said = [check["said"] for check in document["checks"] if check["subject"] == "runpod"]
    for words in ("key from RUNPOD_API_KEY", "clock and this computer's agree", "the account is", "$100.00 prepaid", "no machine of lorry"):
        assert any(words in one for one in said), words
    assert str(told["runpod_api_key"]) not in json.dumps(document)


def test_a_clock_that_is_off_is_told(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = server.descriptor.document()
    monkeypatch.setenv("LORRY_VAST_URL", str(told["vast_url"]))
    monkeypatch.setenv("VAST_API_KEY", str(told["vast_api_key"]))
    api_key = providers.api_key_of("vast")
    assert api_key is not None
    real = datetime.now(UTC)
    assert accounts._clock("vast", api_key, real).health is Health.OK
    assert "ahead of" in accounts._clock("vast", api_key, real + timedelta(minutes=10)).said
    assert "behind" in accounts._clock("vast", api_key, real - timedelta(minutes=10)).said


def test_a_key_file_that_others_can_read_is_trouble(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.name == "nt":
        pytest.skip("Windows has no such bits")
    home.mkdir()
    KeyStore(home).file.write_text("{}")
    KeyStore(home).file.chmod(0o644)
    assert main(["doctor"]) == 11
    assert "chmod 600" in capsys.readouterr().out


def test_colours_are_for_terminals_only(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "needed", "health", "words"),
    [
        (TimerState(kind="cron", installed=True, running=True, words="cron runs it"), True, Health.OK, ""),
        (TimerState(kind="cron", installed=False, running=False, words="no timer is installed; x"), False, Health.OK, ""),
        (
            TimerState(kind="cron", installed=False, running=False, words="no timer is installed; x"),
            True,
            Health.WARNING,
            "--install-timer",
        ),
        (TimerState(kind="systemd", installed=True, running=False, words="it does not run; x"), True, Health.WARNING, "--install-timer"),
        (TimerState(kind="", installed=False, running=False, words="no timer for users"), True, Health.WARNING, "of your own"),
    ],
)
def test_a_timer_that_is_not_there_is_told_to_those_who_rent(
    state: TimerState, needed: bool, health: Health, words: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "timer_state", lambda _: state)
    check = doctor.timer(Home.from_env(), needed=needed)
    assert (check.health, words in check.hint, check.exit_code) == (health, True, 0)
