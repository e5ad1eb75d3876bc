# ruff: noqa: PTH112, PTH118, PTH120, S606  starts without pathlib, for it starts before every rsync; becomes a program by its arguments
"""confine.py ROOT FILE... -- PROGRAM ARG...     runs a program that can read the system's files, the FILEs and what stdin lists below ROOT

rsync hears a stranger's machine while it sends, and older ones could be talked into reading other files of this computer. Under Linux's
Landlock the kernel refuses: nothing else is readable, and nothing at all can be written, by rsync and the ssh that it starts. Where there
is no Landlock (other systems, kernels before 5.13) the program runs as it is, and `lorry doctor` says so. What it says goes into a file of
ours; a machine that has it talk without end ends it at a limit, everywhere but on Windows.

A program of its own: what is confined stays so, and the work between a fork and an exec is not for a process with threads. stdin is a file
of names, each ended by a zero byte, and is left at its beginning for PROGRAM.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
ABI_QUESTION = 1
PATH_BENEATH = 1
PR_SET_NO_NEW_PRIVS = 38
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
BITS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many kinds of access to files each version knows; from 5 on there are 16."""
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/nix/store")
NO_FILE_RIGHTS = READ_DIR
MOST_WORDS_BYTES = 1024**2


def abi() -> int:
    """Landlock's version on this computer; 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, _syscall(CREATE_RULESET, None, 0, ABI_QUESTION))


def confine(readable: list[str], runnable: list[str]) -> bool:
    """From now on this process and its children read only these, and write nothing. Whether that could be had."""
    version = abi()
    if not version:
        return False
    handled = (1 << BITS_BY_ABI.get(version, 16)) - 1
    attributes = ctypes.create_string_buffer(struct.pack("=Q", handled), 8)
    ruleset = _syscall(CREATE_RULESET, attributes, 8, 0)
    if ruleset < 0:
        return False
    for path in (*SYSTEM, os.path.realpath("/etc/resolv.conf"), *runnable):
        _allow(ruleset, path, EXECUTE | READ_FILE | READ_DIR)
    for path in ("/dev/urandom", *readable):
        _allow(ruleset, path, READ_FILE)
    _allow(ruleset, os.devnull, READ_FILE | WRITE_FILE)
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and _syscall(RESTRICT_SELF, ruleset, 0) == 0


def _allow(ruleset: int, path: str, access: int) -> None:
    """What is not there need not be allowed; what is a file cannot be listed."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    rights = access if os.path.isdir(path) else access & ~NO_FILE_RIGHTS
    _syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.create_string_buffer(struct.pack("=Qi", rights, place), 12), 0)
    os.close(place)


def talk_little() -> None:
    """From now on this process and its children write no file longer than the limit: the one that tries is ended."""
    if sys.platform != "win32":
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and so would what it becomes
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_WORDS_BYTES, MOST_WORDS_BYTES))


def _syscall(*arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(*[ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]))


def main(words: list[str]) -> None:
    """Confine this process, then become the program."""
    at = words.index("--")
    (root, *files), command = words[:at], words[at + 1 :]
    listed = os.read(0, os.fstat(0).st_size).split(b"\0")
    os.lseek(0, 0, os.SEEK_SET)
    named = [os.fsdecode(os.path.join(os.fsencode(root), name)) for name in listed if name]
    talk_little()
    confine([*files, *named], [os.path.dirname(os.path.realpath(command[0]))])
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
