"""The one connection to the machine, against a real sshd: what it runs, what it carries, and what it does when the line is bad."""

from __future__ import annotations

import random
import socket
import stat
import string
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machines import Host, Proxy, eventually, machine

from orchestrator import shell as shell_module
from orchestrator.errors import IntegrityError, Interrupted
from orchestrator.shell import ANSWER_MAX_BYTES, CommandFailed, CutShort, LinkDown, LocalTrouble, Shell, make_keys
from providers.base import SSHEndpoint

DATA = random.Random(7).randbytes(3_000_000)


@pytest.fixture
def shell(host: Host, tmp_path: Path) -> Iterator[Shell]:
    shell = host.shell(tmp_path, patience_s=5.0)
    yield shell
    shell.close()


@pytest.fixture
def line(host: Host) -> Iterator[Proxy]:
    with Proxy(host.port) as proxy:
        yield proxy


@pytest.fixture
def far(host: Host, line: Proxy, tmp_path: Path) -> Iterator[Shell]:
    """A shell over a line that can be bent, with a short temper."""
    shell = host.shell(tmp_path, port=line.port, patience_s=2.0, silence_s=0.8)
    yield shell
    shell.close()


# -- commands --------------------------------------------------------------------------------------


def test_a_command_gives_its_output_its_errors_and_its_exit_code(shell: Shell):
    done = shell.run(["sh", "-c", "cat; echo sorry >&2; exit 3"], stdin=b"in\0put")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in\0put", b"sorry\n")


def test_check_tells_the_last_words_of_a_command_that_failed(shell: Shell):
    assert shell.check(["echo", "hi"]) == b"hi\n"
    with pytest.raises(CommandFailed, match="`sh` on the machine ended with 4: no room"):
        shell.check(["sh", "-c", "echo first >&2; echo no room >&2; exit 4"])


@pytest.mark.parametrize("code", ["kill -9 $$", "kill -TERM $$"])
def test_a_command_that_was_killed_did_not_end_well_and_is_not_run_again(shell: Shell, host: Host, code: str):
    with pytest.raises(CommandFailed):
        shell.check(["sh", "-c", f"echo x >> killed; {code}"])
    assert (host.root / "killed").read_text() == "x\n"
    (host.root / "killed").unlink()


HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "a b",
    "'",
    '"',
    "\\",
    "-rf",
    "*",
    "~",
    "$HOME",
    "a;touch pwned",
    "a\nb",
    "",
    "&",
    "ü€𝄞",
    "!!",
    "#x",
]


def test_arguments_arrive_as_they_are_whatever_they_contain(shell: Shell, host: Host):
    said = shell.check(["printf", "%s\\0", *HOSTILE])
    assert said == "".join(f"{word}\0" for word in HOSTILE).encode()
    assert not (host.root / "pwned").exists()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20), min_size=1, max_size=5))
def test_any_text_is_quoted_rightly(shell: Shell, words: list[str]):
    assert shell.check(["printf", "%s\\0", *words]) == "".join(f"{word}\0" for word in words).encode()


def test_an_answer_without_end_is_cut_off(shell: Shell):
    with pytest.raises(IntegrityError, match=f"more than {ANSWER_MAX_BYTES} bytes"):
        shell.run(["sh", "-c", "yes | head -c 9000000"])
    assert shell.check(["echo", "well"]) == b"well\n"


def test_endless_errors_do_not_block_the_answer(shell: Shell):
    """Both streams share one window; the words kept are the last."""
    done = shell.run(["sh", "-c", "head -c 5000000 /dev/zero >&2; echo last >&2; echo done"])
    assert done.stdout == b"done\n"
    assert done.stderr.endswith(b"last\n")
    assert len(done.stderr) <= 1_000_000


def test_a_command_that_never_ends_times_out_and_is_not_run_again(shell: Shell, host: Host):
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match="said nothing for"):
        shell.run(["sh", "-c", "echo x >> runs; exec sleep 100"], timeout_s=2)
    assert time.monotonic() - begun < 20
    eventually((host.root / "runs").exists, "the command's first line", timeout_s=30)  # it runs on over there
    assert (host.root / "runs").read_text() == "x\n"


def test_a_command_that_closes_its_output_and_goes_on_times_out(shell: Shell):
    with pytest.raises(CommandFailed, match="said nothing for"):
        shell.run(["sh", "-c", "exec >&- 2>&-; exec sleep 100"], timeout_s=0.4)


def test_a_command_that_does_not_read_its_input_is_judged_by_its_exit_code(shell: Shell):
    done = shell.run(["sh", "-c", "echo no >&2; exit 5"], stdin=b"x" * 5_000_000)
    assert (done.returncode, done.stderr) == (5, b"no\n")


# -- files -----------------------------------------------------------------------------------------


def test_reading_gives_bytes_from_an_offset_and_none_for_what_is_not_there(shell: Shell, host: Host):
    (host.root / "f").write_bytes(DATA)
    assert shell.read("f") == DATA
    assert shell.read("f", offset=2_999_000) == DATA[2_999_000:]
    assert shell.read("f", offset=4_000_000) == b""
    assert shell.read("f", most=10) == DATA[:10]
    assert shell.read("nothing") is None
    assert (shell.size("f"), shell.size("nothing")) == (3_000_000, None)


def test_files_go_there_and_back_unchanged(shell: Shell, host: Host, tmp_path: Path):
    for size in (0, 1, 32768, 3_000_000):
        (tmp_path / "a").write_bytes(DATA[:size])
        shell.put(tmp_path / "a", "a b")
        assert (host.root / "a b").read_bytes() == DATA[:size]
        shell.fetch("a b", tmp_path / f"back{size}", size=size)
        assert (tmp_path / f"back{size}").read_bytes() == DATA[:size]
    assert not list(host.root.glob("*.part"))


@pytest.mark.parametrize("have", [0, 1, 777_777, 2_999_999, 3_000_000, 3_000_001])
def test_a_fetch_goes_on_from_what_is_there(shell: Shell, host: Host, tmp_path: Path, have: int):
    (host.root / "f").write_bytes(DATA)
    (tmp_path / "part").write_bytes((DATA + b"stray")[:have])
    before = shell.downloaded
    shell.fetch("f", tmp_path / "part", size=len(DATA))
    assert (tmp_path / "part").read_bytes() == DATA
    assert shell.downloaded - before == (len(DATA) if have > len(DATA) else len(DATA) - have)


@pytest.mark.parametrize("have", [0, 1, 777_777, 3_000_000, 3_000_005])
def test_a_put_goes_on_from_the_part_that_is_there(shell: Shell, host: Host, tmp_path: Path, have: int):
    (host.root / "g.part").write_bytes((DATA + b"stray")[:have])
    (tmp_path / "g").write_bytes(DATA)
    moved: list[int] = []
    shell.put(tmp_path / "g", "g", moved=moved.append)
    assert (host.root / "g").read_bytes() == DATA
    assert sum(moved) == (len(DATA) if have > len(DATA) else len(DATA) - have)


def test_a_file_that_is_shorter_than_it_was_said_to_be_is_no_reason_to_wait(shell: Shell, host: Host, tmp_path: Path):
    (host.root / "f").write_bytes(DATA[:1000])
    begun = time.monotonic()
    with pytest.raises(CutShort):
        shell.fetch("f", tmp_path / "part", size=2000)
    assert time.monotonic() - begun < 15


def test_no_permission_over_there_is_said_at_once(host: Host, tmp_path: Path):
    """Waiting two minutes for it would cost money."""
    shell = host.shell(tmp_path, patience_s=60.0)
    (tmp_path / "a").write_bytes(b"x")
    begun = time.monotonic()
    for target in ("no/such/folder/a", "/proc/nothing"):
        with pytest.raises(CommandFailed, match="could not send"):
            shell.put(tmp_path / "a", target)
    assert time.monotonic() - begun < 20
    shell.close()


def test_a_full_disk_over_there_is_said_at_once(host: Host, tmp_path: Path):
    """A link to /dev/full takes the place of the part: every write to it fails with ENOSPC."""
    shell = host.shell(tmp_path, patience_s=60.0)
    (host.root / "full.part").symlink_to("/dev/full")
    (tmp_path / "a").write_bytes(DATA[:300_000])
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match=r"disk may be full|could not send"):
        shell.put(tmp_path / "a", "full")
    assert time.monotonic() - begun < 20
    assert not (host.root / "full").exists()
    (host.root / "full.part").unlink()
    shell.close()


def test_a_full_disk_here_is_not_taken_for_the_machines_trouble(shell: Shell, host: Host, tmp_path: Path):
    (host.root / "f").write_bytes(DATA)
    (tmp_path / "part").symlink_to("/dev/full")
    with pytest.raises(LocalTrouble, match="No space left on device") as caught:
        shell.fetch("f", tmp_path / "part", size=len(DATA))
    assert caught.value.exit_code == 8


def test_a_file_that_is_not_here_cannot_be_sent(shell: Shell, tmp_path: Path):
    with pytest.raises(LocalTrouble, match="No such file"):
        shell.put(tmp_path / "nothing", "x")


# -- bad lines -------------------------------------------------------------------------------------


def test_a_line_that_goes_dead_is_noticed_and_mended(far: Shell, line: Proxy):
    """Half-open: something in between acknowledges every byte and passes none on. The limit is 30 s; here 0.8."""
    assert far.check(["echo", "1"]) == b"1\n"
    begun = time.monotonic()
    threading.Timer(0.3, lambda: setattr(line, "stalled", True)).start()
    with pytest.raises(LinkDown):
        far.run(["sleep", "50"], timeout_s=100)  # the command is under way when the line dies
    assert 0.8 <= time.monotonic() - begun < 25
    line.cut()
    line.stalled = False
    assert far.check(["echo", "2"]) == b"2\n"


def test_the_limit_for_silence_keeps_the_promise_of_thirty_seconds():
    assert shell_module.SILENCE_S + shell_module.SILENCE_S / 20 < 30


def test_a_quiet_machine_is_not_taken_for_a_dead_one(far: Shell):
    assert far.check(["sh", "-c", "sleep 1.5; echo here"], timeout_s=30) == b"here\n"


def test_a_cut_line_is_no_answer(far: Shell, line: Proxy, host: Host):
    """The command is run again over the next connection: an exit status that never came is not one."""
    far.connect()
    far.give_up = lambda: setattr(line, "cut_down_after", None)
    (host.root / "go").unlink(missing_ok=True)
    threading.Timer(0.3, line.cut).start()
    assert far.check(["sh", "-c", "test -e go && echo done || { touch go; sleep 30; }"], timeout_s=60) == b"done\n"


def test_whoever_waits_is_told_for_how_long_and_when_it_is_over(far: Shell, line: Proxy):
    told: list[float] = []
    back: list[float] = []

    def waiting() -> None:
        told.append(far.down_s)
        if len(told) > 1:
            line.refusing = False

    far.patience_s = 60.0
    far.give_up, far.came_back = waiting, lambda: back.append(far.down_s)
    assert far.check(["echo", "1"]) == b"1\n"
    assert (told, back, far.down_s) == ([], [], 0.0), "nothing was silent"
    line.refusing = True
    line.cut()
    assert far.check(["echo", "2"]) == b"2\n"
    assert told[0] == 0.0 < told[1]
    assert back == [0.0]


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(60_000, 400_000))
def test_a_fetch_cut_at_any_byte_over_and_over_ends_with_the_right_bytes(host: Host, tmp_path: Path, cut: int):
    (host.root / "f").write_bytes(DATA[:500_000])
    target = tmp_path / "part"
    target.unlink(missing_ok=True)
    with Proxy(host.port, cut_down_after=cut, cuts_left=2) as line:
        shell = host.shell(tmp_path, port=line.port, patience_s=20.0)
        shell.forget_host()
        shell.fetch("f", target, size=500_000)
        shell.close()
    assert target.read_bytes() == DATA[:500_000]


@pytest.mark.parametrize("cut", [80_000, 250_001])
def test_a_put_cut_over_and_over_ends_with_the_right_bytes(host: Host, tmp_path: Path, cut: int):
    (tmp_path / "g").write_bytes(DATA[:400_000])
    with Proxy(host.port, cut_up_after=cut, cuts_left=30) as line:
        shell = host.shell(tmp_path, port=line.port, patience_s=20.0)
        shell.put(tmp_path / "g", "g")
        shell.close()
        assert line.connections > 1
    assert (host.root / "g").read_bytes() == DATA[:400_000]


def test_a_transfer_that_gets_on_between_cuts_may_take_longer_than_the_patience(host: Host, tmp_path: Path):
    """Patience is for a machine that does not answer, not for a bad line: each cut comes 40 s after the last."""
    clock = FakeClock()
    clock.on_sleep = lambda _: setattr(clock, "passed_s", clock.passed_s + 40)
    (host.root / "f").write_bytes(DATA[:1_000_000])
    with Proxy(host.port, cut_down_after=150_000, cuts_left=5) as line:
        shell = host.shell(tmp_path, port=line.port, clock=clock, patience_s=100.0)
        shell.fetch("f", tmp_path / "part", size=1_000_000)
        shell.close()
    assert clock.passed_s > 150
    assert (tmp_path / "part").read_bytes() == DATA[:1_000_000]


def test_a_line_on_which_nothing_gets_through_is_given_up(host: Host, tmp_path: Path):
    clock = FakeClock()
    with Proxy(host.port, cut_down_after=100) as line:
        shell = host.shell(tmp_path, port=line.port, clock=clock, patience_s=10.0)
        with pytest.raises(LinkDown, match="does not answer: could not fetch f"):
            shell.fetch("f", tmp_path / "part", size=10)
    assert 10 < clock.passed_s < 15


def test_waiting_for_a_dead_machine_can_be_stopped(host: Host, tmp_path: Path):
    with Proxy(host.port, refusing=True) as line:
        shell = host.shell(tmp_path, port=line.port)

        def stop() -> None:
            raise Interrupted("stopped")

        shell.give_up = stop
        with pytest.raises(Interrupted):
            shell.check(["true"])


def test_a_server_that_accepts_and_says_nothing_is_not_waited_for(tmp_path: Path, host: Host):
    with socket.create_server(("127.0.0.1", 0)) as dumb:
        shell = host.shell(tmp_path, port=dumb.getsockname()[1], patience_s=0.0, silence_s=0.3, clock=FakeClock())
        begun = time.monotonic()
        assert not shell.probe()
        assert time.monotonic() - begun < 20


def test_probe_tells_whether_the_machine_lets_us_in(host: Host, tmp_path: Path):
    assert host.shell(tmp_path).probe()
    with Proxy(host.port, refusing=True) as line:
        assert not host.shell(tmp_path, port=line.port).probe()
    (tmp_path / "other").mkdir()
    stranger = Shell(SSHEndpoint(host="127.0.0.1", port=host.port, user=host.user), make_keys(tmp_path / "other"), FakeClock())
    assert not stranger.probe()


# -- who is on the other side ----------------------------------------------------------------------


def test_another_host_key_ends_it_before_a_byte_of_ours_is_sent(host: Host, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    with Proxy(host.port) as line:
        shell = host.shell(tmp_path, port=line.port, patience_s=2.0)
        first = shell.connect()
        assert first.startswith("SHA256:")
        assert host.shell(tmp_path, port=line.port).connect() == first
        with machine(tmp_path_factory.mktemp("other")) as other:
            other_log = other.root.parent / "boot.log"
            line.target = other.port
            line.cut()
            for act in (lambda: shell.check(["touch", "here"]), shell.probe, lambda: shell.put(host.keys.private, "x")):
                with pytest.raises(IntegrityError, match="another host key") as caught:
                    act()
                assert caught.value.exit_code == 12
            assert "publickey" not in other_log.read_text(), "no login was tried"
            assert "authenticating" not in other_log.read_text()


def test_a_new_machine_at_an_old_address_is_met_after_its_pin_was_dropped(host: Host, tmp_path: Path):
    shell = host.shell(tmp_path)
    known = shell.keys.known_hosts
    known.write_text(f"[127.0.0.1]:{host.port} ssh-ed25519 AAAAwrong\n[10.0.0.1]:22 ssh-ed25519 AAAAkept\n")
    with pytest.raises(IntegrityError):
        shell.connect()
    shell.forget_host()
    shell.connect()
    assert "AAAAkept" in known.read_text()
    assert "AAAAwrong" not in known.read_text()
    shell.close()


def test_the_pin_is_written_as_openssh_reads_it(tmp_path: Path, host: Host):
    """For rsync: port 22 has no brackets in known_hosts."""
    for port, name in ((22, "h"), (2222, "[h]:2222")):
        assert Shell(SSHEndpoint(host="h", port=port, user="u"), host.keys, FakeClock())._known_as() == name


def test_the_key_is_private_and_made_once(tmp_path: Path):
    keys = make_keys(tmp_path)
    assert stat.S_IMODE(keys.private.stat().st_mode) == 0o600
    before = keys.private.read_bytes()
    assert make_keys(tmp_path).private.read_bytes() == before
    assert keys.public_line.split()[0] == "ssh-ed25519"
    assert set(keys.public_line) <= set(string.printable) - {"\n"}


def test_openssh_uses_this_runs_key_and_pins_and_nothing_of_the_users(host: Host, tmp_path: Path):
    words = host.shell(tmp_path).openssh()
    assert words[:5] == ["ssh", "-F", "none", "-i", str(host.keys.private)]
    assert {"IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "BatchMode=yes", "ForwardAgent=no"} <= set(words)
